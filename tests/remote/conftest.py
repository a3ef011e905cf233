"""What a block that goes to a real server is given."""

import pytest
from fake_server import FakeServer

from insitu import CONFIG


@pytest.fixture
def server():
    """A server that says what a test has it say; nothing is printed."""
    with FakeServer() as fake, CONFIG.APP.override(REMOTE_LOGGING=False):
        yield fake


@pytest.fixture
def far(llm):
    """A wrapper that a server could know by name."""
    llm.__dict__["_opened_as"] = "demo"
    return llm


@pytest.fixture
def remote(team_server, monkeypatch):
    """What `remote=` is given; the key is set, and nothing is printed."""
    url, key = team_server
    monkeypatch.setenv("INSITU_API_KEY", key)
    with CONFIG.APP.override(REMOTE_LOGGING=False):
        yield url
