"""Files and folders that nobody else on the machine can read, whatever the umask is.

private.folder(Path("~/.local/share/insitu/server-8765"))
private.file(folder / "jobs.sqlite")        # there, empty unless it was there, 0600
with private.opened(folder / "lock") as lock: ...
"""

import os
from pathlib import Path
from typing import BinaryIO

_BESIDE = ("-wal", "-shm")
"""What sqlite keeps beside a database, with the database's own mode when it makes it."""


def folder(path: Path) -> None:
    """Make it and what is missing above it; one that is there stays as it was made."""
    missing = [it for it in (path, *path.parents) if not it.exists()]
    for it in reversed(missing):
        it.mkdir(mode=0o700, exist_ok=True)


def file(path: Path) -> None:
    """Make it where it is not, and close it to others where they could read it."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    for it in (path, *(path.with_name(path.name + end) for end in _BESIDE)):
        if it.exists():
            it.chmod(0o600)


def opened(path: Path) -> BinaryIO:
    """A file that is written anew."""
    file(path)
    return path.open("wb")
