"""The server computes nothing: what its process imports has no torch in it."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

PROGRAM = """
import sys
import insitu.cli
import insitu.remote.server.serve
heavy = {"torch", "numpy", "transformers", "safetensors", "requests"} & sys.modules.keys()
sys.exit(f"imported: {heavy}" if heavy else 0)
"""


def test_insitu_serve_does_without_torch():
    """33 MB and 0.4 s, where 229 and 3.8 would be needed."""
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_server_that_runs_has_no_torch_in_it(tmp_path):
    """`--device auto`, the default, asks another process what devices there are."""
    command = [sys.executable, "-m", "insitu", "serve", "demo", "--lazy", "--port", "0"]
    told = tmp_path / "told"
    with told.open("w") as out:
        process = subprocess.Popen(
            [*command, "--data", str(tmp_path / "data")], stdout=out, stderr=subprocess.STDOUT
        )
    try:
        end = time.monotonic() + 120
        while not _is_alive(told.read_text()):
            assert process.poll() is None, told.read_text()
            assert time.monotonic() < end, told.read_text()
            time.sleep(0.1)
        mapped = Path(f"/proc/{process.pid}/maps").read_text()
        assert "python" in mapped
        assert not [name for name in ("libtorch", "numpy", "safetensors") if name in mapped]
    finally:
        process.kill()
        process.wait()


def _is_alive(told):
    """Whether the server that says this answers: all that it starts with is there then."""
    url = next((it for it in told.split() if it.startswith("http://127")), "")
    try:
        return bool(url) and requests.get(f"{url}/readyz", timeout=5).ok
    except requests.ConnectionError:
        return False


def test_every_name_of_the_package_is_there_when_it_is_named():
    names = "import insitu\nfor name in insitu.__all__: assert name in dir(insitu)\n"
    program = f"{names}from insitu import *\nassert NNsight is insitu.NNsight"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
