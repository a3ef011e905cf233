"""Keys: what is kept, who they are, what they open, when they end."""

import hashlib
import hmac
import sqlite3
import time

import pytest

from insitu.cli import main
from insitu.errors import UsageError
from insitu.remote.server import keys as module
from insitu.remote.server.keys import Caller, Keys


@pytest.fixture
def keys(tmp_path):
    found = Keys(tmp_path / "keys.sqlite")
    yield found
    found.close()


def test_a_key_is_its_users_and_only_its_digest_is_kept(keys, tmp_path):
    key = keys.add("ada")
    assert keys.who(key) == Caller("ada", ("run", "read"), None)
    kept = b"".join(it.read_bytes() for it in tmp_path.iterdir())
    secret = key.split("-", 2)[2]
    assert len(secret) == 43  # 32 bytes
    assert secret.encode() not in kept
    assert hashlib.sha256(key.encode()).hexdigest().encode() in kept
    assert (tmp_path / "keys.sqlite").stat().st_mode & 0o077 == 0


WRONG = {
    "cut": lambda key: key[:-1] + "?",
    "empty": lambda key: "",
    "long": lambda key: "x" * 10_000,
    "surrogate": lambda key: key + "\udcff",
    "case": lambda key: key.upper(),
    "tail": lambda key: key[7:],
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_another_key_is_nobodys(keys, change):
    assert keys.who(change(keys.add("ada"))) is None


def test_a_key_without_a_row_is_compared_too(keys, monkeypatch):
    compared = []
    monkeypatch.setattr(
        module.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or hmac_same(a, b)
    )
    assert keys.who("insitu-000000000000-nothing") is None
    keys.who(keys.add("ada"))
    assert len(compared) == 2


hmac_same = hmac.compare_digest


def test_a_key_ends_when_it_expires_and_when_it_is_revoked(keys):
    short = keys.add("ada", days=0.2 / 86_400)
    assert keys.who(short).name == "ada"
    time.sleep(0.25)
    assert keys.who(short) is None
    other = keys.add("bob")
    assert keys.revoke("bob") == 1
    assert keys.who(other) is None
    assert [it.state(time.time()) for it in keys.list()] == ["expired", "revoked"]


def test_another_process_revokes_at_once(keys, tmp_path):
    key = keys.add("ada")
    beside = Keys(tmp_path / "keys.sqlite")
    beside.revoke("ada")
    beside.close()
    assert keys.who(key) is None


def test_admin_opens_everything():
    assert Caller("a", ("admin",)).may("run")
    assert not Caller("a", ("read",)).may("run")


@pytest.mark.parametrize(
    ("name", "scopes", "said"),
    [("", ("run",), "cannot be the name"), ("a b", ("run",), "cannot be the name"),
     ("ada", ("root",), "root is no scope"), ("ada", (), "nothing is no scope")],
)  # fmt: skip
def test_wrong_names_and_scopes_are_refused(keys, name, scopes, said):
    with pytest.raises(UsageError, match=said):
        keys.add(name, scopes)


def test_a_name_has_one_key_at_a_time(keys):
    keys.add("ada")
    with pytest.raises(UsageError, match="ada has a key already"):
        keys.add("ada")
    keys.revoke("ada")
    keys.add("ada")


def test_the_command_line_adds_lists_and_revokes(tmp_path, capsys):
    data = ["--data", str(tmp_path)]
    main(["keys", "add", "ada", "--scopes", "read", "--expires", "30d", *data])
    key = capsys.readouterr().out.splitlines()[0]
    main(["keys", "list", *data])
    listed = capsys.readouterr().out
    assert "ada" in listed
    assert "active" in listed
    assert key not in listed
    main(["keys", "revoke", "ada", *data])
    main(["keys", "list", *data])
    assert "revoked" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"eve has no key\.\nWhy: .*\nNext: "):
        main(["keys", "revoke", "eve", *data])
    with sqlite3.connect(tmp_path / "keys.sqlite") as rows:
        assert rows.execute("SELECT scopes FROM keys").fetchone() == ("read",)
    rows.close()
