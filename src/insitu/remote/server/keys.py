"""Keys: who may send jobs. Random 32 bytes, of which only the sha256 is kept.

keys = Keys(folder / "keys.sqlite")
key = keys.add("ada", scopes=("run", "read"), days=30)      # shown once
keys.who(key)                                               # Caller("ada", …) or None
"""

import hashlib
import hmac
import re
import secrets
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from insitu.errors import UsageError
from insitu.remote.server import private

SCOPES = ("run", "read", "admin")
PREFIX = "insitu"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
MOST_CHARS = 200
NOBODY = hashlib.sha256(b"nobody").hexdigest()

SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, sha256 TEXT NOT NULL, scopes TEXT NOT NULL,
  created REAL NOT NULL, expires REAL, revoked REAL
) WITHOUT ROWID
"""


@dataclass(frozen=True)
class Caller:
    """Who a request comes from."""

    name: str
    scopes: tuple[str, ...] = SCOPES
    expires: float | None = None

    def may(self, scope: str) -> bool:
        """Whether a key opens a kind of route."""
        return scope in self.scopes or "admin" in self.scopes


@dataclass(frozen=True)
class Key:
    """A key as `insitu keys list` tells it."""

    id: str
    name: str
    scopes: tuple[str, ...]
    created: float
    expires: float | None
    revoked: float | None

    def state(self, now: float) -> str:
        """`active`, `expired` or `revoked`."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "active"


class Keys:
    """The keys of a server, in a file of their own that `insitu keys` changes while it runs."""

    def __init__(self, path: Path) -> None:
        private.folder(path.parent)
        private.file(path)
        self.path = path
        self._rows = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
        self._rows.execute("PRAGMA journal_mode = WAL")
        self._rows.execute(SCHEMA)

    def close(self) -> None:
        """Let go of the file."""
        self._rows.close()

    def add(
        self, name: str, scopes: tuple[str, ...] = ("run", "read"), days: float | None = None
    ) -> str:
        """A new key for a user; told once and never again.

        Raises:
            UsageError: the name or a scope is none, or the name has a key.
        """
        check_name(name)
        check_scopes(scopes)
        if any(it.name == name and it.state(time.time()) == "active" for it in self.list()):
            raise UsageError(
                f"{name} has a key already.",
                "Only its digest is kept, so that it cannot be shown again.",
                f"insitu keys revoke {name}, and then add it again: the jobs stay theirs.",
            )
        id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        key = f"{PREFIX}-{id}-{secret}"
        expires = None if days is None else time.time() + days * 86_400
        self._rows.execute(
            "INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, NULL)",
            (id, name, digest(key), " ".join(scopes), time.time(), expires),
        )
        return key

    def revoke(self, name: str) -> int:
        """End a user's keys now; how many there were."""
        done = self._rows.execute(
            "UPDATE keys SET revoked = ? WHERE name = ? AND revoked IS NULL", (time.time(), name)
        )
        return done.rowcount

    def list(self) -> "list[Key]":
        """Every key there is or was."""
        found = self._rows.execute(
            "SELECT id, name, scopes, created, expires, revoked FROM keys ORDER BY created"
        )
        return [Key(row[0], row[1], tuple(row[2].split()), *row[3:]) for row in found]

    def any(self) -> bool:
        """Whether a key opens anything."""
        return any(it.state(time.time()) == "active" for it in self.list())

    def who(self, key: str) -> Caller | None:
        """Whose key it is, if it is one and still opens anything.

        The rows are found by the key's public part; the digest is compared in constant time, and
        compared with another where there is no row.
        """
        parts = key.split("-", 2) if len(key) <= MOST_CHARS else []
        id = parts[1] if len(parts) == 3 and parts[0] == PREFIX else ""
        found = self._rows.execute(
            "SELECT name, sha256, scopes, expires, revoked FROM keys WHERE id = ?", (id,)
        ).fetchone()
        name, kept, scopes, expires, revoked = found or ("", NOBODY, "", None, None)
        same = hmac.compare_digest(digest(key), kept)
        over = revoked is not None or (expires is not None and expires <= time.time())
        if not same or over or not name:
            return None
        return Caller(name, tuple(scopes.split()), expires)


def digest(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def check_name(name: str) -> None:
    """Raise unless a name can be one.

    Raises:
        UsageError: it cannot.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of a key.",
            "A name is 1 to 64 letters, digits and . _ @ -, and begins with a letter or digit.",
            "insitu keys add ada",
        )


def check_scopes(scopes: tuple[str, ...]) -> None:
    """Raise unless all are scopes.

    Raises:
        UsageError: one is none.
    """
    wrong = [it for it in scopes if it not in SCOPES]
    if wrong or not scopes:
        raise UsageError(
            f"{', '.join(wrong) or 'nothing'} is no scope of a key.",
            "run sends and cancels jobs, read looks at them, admin sees every user's.",
            "insitu keys add ada --scopes run,read",
        )
