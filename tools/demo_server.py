"""A server of the demo model on loopback, for documents, notebooks and benchmarks.

with demo_server() as (url, key):
    ...
demo_server(trust="self")
url, key = shared()                     # one for this whole process
"""

import atexit
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import requests

START_S = 120


@contextmanager
def demo_server(
    *models: str,
    trust: str = "team",
    folder: str | None = None,
    python: str = sys.executable,
    **variables: str,
) -> Iterator[tuple[str, str]]:
    """Run `insitu serve` until the block ends; gives its address and a key."""
    key = secrets.token_urlsafe(32)
    with TemporaryDirectory(dir=folder) as place:
        told = Path(place) / "told"
        command = [python, "-m", "insitu", "serve", *(models or ("demo",))]
        more = ["--trust", trust, "--port", "0", "--key", key, "--data", f"{place}/data"]
        with told.open("w") as out:
            process = subprocess.Popen(
                [*command, *more],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **variables},
            )
        try:
            yield _ready(process, told), key
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@cache
def shared() -> tuple[str, str]:
    """The address and a key of a server that is stopped when this process ends."""
    kept = ExitStack()
    atexit.register(kept.close)
    return kept.enter_context(demo_server())


def _ready(process: subprocess.Popen[bytes], told: Path) -> str:
    """The address, when it takes jobs."""
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        url = next((it for it in told.read_text().split() if it.startswith("http://127")), None)
        try:
            if url is not None and requests.get(f"{url}/readyz", timeout=1).ok:
                return url
        except requests.RequestException:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"the server did not come up:\n{told.read_text()}")
