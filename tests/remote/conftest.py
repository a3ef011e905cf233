"""What a block that goes to a real server is given."""

import pytest

from insitu import CONFIG


@pytest.fixture
def remote(team_server, monkeypatch):
    """What `remote=` is given; the key is set, and nothing is printed."""
    url, key = team_server
    monkeypatch.setenv("INSITU_API_KEY", key)
    with CONFIG.APP.override(REMOTE_LOGGING=False):
        yield url
