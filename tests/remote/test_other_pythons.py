"""Clients and servers on different Pythons: each client runs `other_python.py` on a real server.

They are looked for in INSITU_PYTHONS, a list of interpreters as PATH is one, and in ~/.pyenv. One
that lacks torch, or any other package that a client needs, is skipped by name.
"""

import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from demo_server import demo_server

pytestmark = pytest.mark.slow
VERSIONS = ["3.11", "3.12", "3.13"]
HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src"
NEEDS = ("torch", "transformers", "requests", "safetensors", "zstandard", "greenlet", "pytest")
ASK = f"""
import sys
from importlib.util import find_spec
lacks = [it for it in {NEEDS!r} if find_spec(it) is None]
print("%d.%d" % sys.version_info[:2], *lacks)
"""


@cache
def found(version):
    """An interpreter of a version that has what a client needs, or why there is none."""
    named = [it for it in os.environ.get("INSITU_PYTHONS", "").split(os.pathsep) if it]
    pyenv = sorted(map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python")))
    said = [f"no Python {version} in INSITU_PYTHONS or ~/.pyenv"]
    for python in (sys.executable, *named, *pyenv):
        is_of, *lacks = run(python, "-c", ASK).stdout.split() or ["none"]
        if is_of == version and not lacks:
            return python, ""
        if is_of == version:
            said.append(f"{python} lacks {', '.join(lacks)}")
    return None, "; ".join(said[1:] or said)


def run(python, *words, **variables):
    names = {it: value for it, value in os.environ.items() if not it.startswith("INSITU_")}
    return subprocess.run(
        [python, "-B", *words], capture_output=True, text=True, check=False, timeout=240,
        env={**names, "PYTHONPATH": str(SOURCE), **variables},
    )  # fmt: skip


def test_an_interpreter_that_is_not_there_is_told_of(monkeypatch):
    assert found.__wrapped__("9.9") == (None, "no Python 9.9 in INSITU_PYTHONS or ~/.pyenv")
    here = ".".join(platform.python_version_tuple()[:2])
    assert found.__wrapped__(here) == (sys.executable, "")
    monkeypatch.setitem(globals(), "ASK", ASK.replace("torch", "no_such_package"))
    why = found.__wrapped__(here)[1]
    assert f"{sys.executable} lacks no_such_package" in why


@pytest.fixture(scope="module", params=VERSIONS)
def server(request):
    """A server on one of the Pythons: its version, address and key."""
    python, why = found(request.param)
    if python is None:
        pytest.skip(why)
    with demo_server(python=python, PYTHONPATH=str(SOURCE)) as (url, key):
        yield request.param, url, key


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_of_this_python_uses_the_server(version, server):
    python, why = found(version)
    if python is None:
        pytest.skip(why)
    there, url, key = server
    done = run(
        python, "-W", "error", str(HERE / "other_python.py"), url, there,
        INSITU_API_KEY=key, HF_HUB_OFFLINE="1", XDG_CONFIG_HOME=str(HERE / "no such folder"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == (f"client {version} of a server on {there}: all is well")
