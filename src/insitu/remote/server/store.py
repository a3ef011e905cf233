"""Jobs and their events in sqlite: one writer in a thread, commits in batches, readers beside it.

store = Store(folder / "jobs.sqlite"); store.open(loop)
await store.write("INSERT INTO …", values)     # when this returns, it is committed
store.events("5f…", after=12)                  # what a stream sends next

WAL with `synchronous=NORMAL`: what is committed survives SIGKILL of this process; a power cut may
take the last moments, and leaves the file sound.
"""

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from insitu.remote.server import private
from insitu.remote.server.refusal import StoreTrouble

SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
  id TEXT PRIMARY KEY, user TEXT NOT NULL, model TEXT NOT NULL, phase TEXT NOT NULL,
  created REAL NOT NULL, began REAL, ended REAL, text TEXT NOT NULL DEFAULT '',
  fault TEXT, result_bytes INTEGER, result_sha TEXT, kept INTEGER NOT NULL DEFAULT 1,
  rows_bytes INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS jobs_of_user ON jobs (user, created);
CREATE INDEX IF NOT EXISTS jobs_in_phase ON jobs (phase);
CREATE TABLE IF NOT EXISTS events (
  job TEXT NOT NULL, number INTEGER NOT NULL, kind TEXT NOT NULL, data TEXT NOT NULL,
  PRIMARY KEY (job, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS idempotency (
  user TEXT NOT NULL, key TEXT NOT NULL, body TEXT NOT NULL, job TEXT NOT NULL,
  PRIMARY KEY (user, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS idempotency_of_job ON idempotency (job);
"""

LATER = {"rows_bytes": "ALTER TABLE jobs ADD COLUMN rows_bytes INTEGER NOT NULL DEFAULT 0"}
"""Columns that databases of earlier versions do not have."""
ADD_EVENT = "INSERT INTO events (job, number, kind, data) VALUES (?, ?, ?, ?)"
ADD_KEY = "INSERT INTO idempotency (user, key, body, job) VALUES (?, ?, ?, ?)"
ADD_JOB = "INSERT INTO jobs (id, user, model, phase, created) VALUES (?, ?, ?, ?, ?)"

BATCH = 2_000
"""Statements in one commit: at 10,000 lines a second, five commits."""
BUSY_MS = 2_000
RETRY_S = 0.25
PENDING = 50_000
"""Rows that may wait for a disk that takes none; then jobs, and what they tell, are refused."""
PENDING_BYTES = 64 * 2**20
"""… and how much they may hold."""

ROW_BYTES = 100
"""What an event takes beside its text."""

Statement = tuple[str, Sequence[Any]]


@dataclass(frozen=True)
class Write:
    """Statements that are committed together, and who waits for it."""

    statements: tuple[Statement, ...]
    done: asyncio.Future[None] | None = None
    jobs: tuple[str, ...] = ()
    """Whose readers are told after the commit."""

    @property
    def bytes(self) -> int:
        """About how much memory it holds."""
        values = (it for _, given in self.statements for it in given)
        return sum(len(it) for it in values if isinstance(it, str))


class Store:
    """The database. Abstract over nothing: sqlite, one file."""

    def __init__(self, path: Path, busy_ms: int = BUSY_MS) -> None:
        self.path = path
        self.busy_ms = busy_ms
        self.trouble = ""
        """Why nothing is written at the moment, or nothing."""
        self.committed: Callable[[set[str]], None] = lambda jobs: None
        """Told, in the event loop, which jobs have new rows."""
        self._queue: queue.SimpleQueue[Write | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="insitu-store", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._quick: sqlite3.Connection | None = None
        """For what cannot wait for the writer's turn; it waits for nobody."""
        self._pending = self._pending_bytes = 0

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Open the file and start the writer."""
        self._loop = loop
        private.file(self.path)
        self._writer = connect(self.path, self.busy_ms)
        self._writer.executescript(SCHEMA)
        there = {row["name"] for row in self._writer.execute("PRAGMA table_info(jobs)")}
        for name in LATER.keys() - there:
            self._writer.execute(LATER[name])
        self._reader = connect(self.path, self.busy_ms)
        self._reader.execute("PRAGMA query_only = ON")
        self._quick = connect(self.path, 0)
        self._quick.execute("PRAGMA wal_autocheckpoint = 0")  # the writer may wait for the disk
        self._thread.start()

    def close(self) -> None:
        """Commit what waits, and end the writer; what cannot be written in 5 s is given up."""
        self._queue.put(None)
        self._thread.join(5)
        for connection in (self._reader, self._quick, self._writer):
            if connection is not None and not self._thread.is_alive():
                connection.close()

    # writing -----------------------------------------------------------------------------------

    def post(self, *statements: Statement, jobs: tuple[str, ...] = ()) -> None:
        """Write in order, soon; tried again until the database takes it."""
        self._put(Write(statements, None, jobs))

    def post_now(self, *statements: Statement, jobs: tuple[str, ...] = ()) -> None:
        """As `post`, and here and now where nothing waits for the writer: 0.1 ms, not 0.5."""
        assert self._quick is not None
        write = Write(statements, None, jobs)
        if self._pending or self._tried(self._quick, [write]) is not None:
            self.post(*statements, jobs=jobs)
        else:
            self.committed(set(jobs))

    async def write(self, *statements: Statement, jobs: tuple[str, ...] = ()) -> None:
        """Write and wait for the commit.

        Raises:
            StoreTrouble: the database is locked, or the disk is full; nothing was written.
        """
        assert self._loop is not None
        if self.is_behind:
            raise self._said(self.trouble or "its writer is behind")
        done: asyncio.Future[None] = self._loop.create_future()
        self._put(Write(statements, done, jobs))
        await done

    def _put(self, write: Write) -> None:
        self._pending += len(write.statements)
        self._pending_bytes += write.bytes
        self._queue.put(write)

    def pending(self) -> int:
        """Statements that wait to be written."""
        return self._pending

    @property
    def is_behind(self) -> bool:
        """Whether so much waits to be written that nothing more should."""
        return self._pending > PENDING or self._pending_bytes > PENDING_BYTES

    def _run(self) -> None:
        waiting: list[Write] = []
        going = True
        while going or waiting:
            going = self._collect(waiting) and going
            waiting = self._commit(waiting)
            if waiting and not going:  # closing, and the disk takes nothing
                self._answer(waiting, sqlite3.OperationalError(self.trouble))
                return

    def _collect(self, waiting: list[Write]) -> bool:
        """Add what is to be written; False when nothing more will come."""
        size = sum(len(it.statements) for it in waiting)
        with contextlib.suppress(queue.Empty):
            it = self._queue.get(timeout=RETRY_S if waiting else None)
            while it is not None:
                waiting.append(it)
                size += len(it.statements)
                if size >= BATCH:
                    return True
                it = self._queue.get_nowait()
            return False
        return True

    def _commit(self, writes: list[Write]) -> list[Write]:
        """Write them; returns what is to be tried again."""
        if not writes:
            return []
        assert self._writer is not None
        trouble = self._tried(self._writer, writes)
        if trouble is None:
            self._answer(writes, None)
            return []
        if _is_transient(trouble):
            self._answer([it for it in writes if it.done is not None], trouble)
            return [it for it in writes if it.done is None]
        if len(writes) > 1:  # one of them is wrong: which?
            return [left for one in writes for left in self._commit([one])]
        self._answer(writes, trouble)
        return []

    def _tried(self, connection: sqlite3.Connection, writes: list[Write]) -> sqlite3.Error | None:
        try:
            connection.execute("BEGIN IMMEDIATE")
            for it in writes:
                for text, values in it.statements:
                    connection.execute(text, values)
            connection.execute("COMMIT")
            self.trouble = ""
            return None
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):  # sqlite may have rolled back by itself
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            self.trouble = str(error)
            return error

    def _answer(self, writes: list[Write], trouble: sqlite3.Error | None) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
            self._loop.call_soon_threadsafe(self._tell, writes, trouble)

    def _tell(self, writes: list[Write], trouble: sqlite3.Error | None) -> None:
        jobs: set[str] = set()
        for it in writes:
            self._pending -= len(it.statements)
            self._pending_bytes -= it.bytes
            jobs.update(it.jobs)
            if it.done is not None and not it.done.done():
                if trouble is None:
                    it.done.set_result(None)
                else:
                    it.done.set_exception(self._said(str(trouble)))
        if jobs and trouble is None:
            self.committed(jobs)

    def _said(self, text: str) -> StoreTrouble:
        full = "full" in text or "disk" in text
        return StoreTrouble(
            "the server cannot write to its disk." if full else "the server's database is busy.",
            f"Its database says: {text}.",
            "Tell who runs the server; its data folder needs room."
            if full
            else "Send the request again.",
        )

    # reading -----------------------------------------------------------------------------------

    def rows(self, text: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """What a SELECT finds; readers are not held up by the writer.

        Raises:
            StoreTrouble: the file cannot be read.
        """
        assert self._reader is not None
        try:
            return self._reader.execute(text, values).fetchall()
        except sqlite3.Error as error:
            raise self._said(str(error)) from error

    def job(self, id: str) -> sqlite3.Row | None:
        """One job."""
        return next(iter(self.rows("SELECT * FROM jobs WHERE id = ?", (id,))), None)

    def events(self, job: str, after: int, most: int = 256) -> list[sqlite3.Row]:
        """A job's next events."""
        return self.rows(
            "SELECT number, kind, data FROM events WHERE job = ? AND number > ? "
            "ORDER BY number LIMIT ?",
            (job, after, most),
        )

    def sent_before(self, user: str, key: str) -> sqlite3.Row | None:
        """The job that a user's idempotency key stands for: `body`, `job`."""
        found = self.rows("SELECT * FROM idempotency WHERE user = ? AND key = ?", (user, key))
        return next(iter(found), None)

    def unended(self, ends: Iterable[str]) -> list[sqlite3.Row]:
        """Jobs that an earlier server did not bring to an end, oldest first."""
        marks = ", ".join("?" for _ in ends)
        return self.rows(
            f"SELECT jobs.*, (SELECT MAX(number) FROM events WHERE job = jobs.id) AS last, "
            f"(SELECT SUM(LENGTH(data) + ?) FROM events WHERE job = jobs.id) AS told "
            f"FROM jobs WHERE phase NOT IN ({marks}) ORDER BY created, id",
            (ROW_BYTES, *ends),
        )


def forgotten(job: str) -> tuple[Statement, ...]:
    """Nothing of a job is left."""
    return (
        ("DELETE FROM events WHERE job = ?", (job,)),
        ("DELETE FROM idempotency WHERE job = ?", (job,)),
        ("DELETE FROM jobs WHERE id = ?", (job,)),
    )


def connect(path: Path, busy_ms: int) -> sqlite3.Connection:
    """A connection that commits when told to."""
    found = sqlite3.connect(
        path, timeout=busy_ms / 1000, isolation_level=None, check_same_thread=False
    )
    found.row_factory = sqlite3.Row
    found.execute("PRAGMA journal_mode = WAL")
    found.execute("PRAGMA synchronous = NORMAL")
    found.execute(f"PRAGMA busy_timeout = {busy_ms}")
    return found


def _is_transient(error: sqlite3.Error) -> bool:
    text = str(error)
    return any(word in text for word in ("locked", "busy", "full", "disk I/O", "unable to open"))
