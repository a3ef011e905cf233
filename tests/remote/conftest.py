"""One server of the demo model, for all tests that want a real one."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))

import demo_server

from insitu import CONFIG


@pytest.fixture(scope="session")
def team_server():
    """Its address and a key; blocks run in a jail."""
    with demo_server.demo_server() as (url, key):
        yield url, key


@pytest.fixture
def remote(team_server, monkeypatch):
    """What `remote=` is given; the key is set, and nothing is printed."""
    url, key = team_server
    monkeypatch.setenv("INSITU_API_KEY", key)
    with CONFIG.APP.override(REMOTE_LOGGING=False):
        yield url
