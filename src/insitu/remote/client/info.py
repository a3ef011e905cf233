"""Questions to a server: its models, its packages, who one is there, and the jobs one has.

insitu.status()                             # its models, and what they are doing
insitu.is_model_running("openai-community/gpt2")
insitu.compare()                            # package versions, here and there
insitu.whoami()
insitu.jobs()
insitu.job("5f…").result()                  # one of them, from another process
"""

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from insitu.errors import JobLostError, ServerRefusedError, UsageError
from insitu.remote.client import words
from insitu.remote.client.connection import Connection
from insitu.remote.client.job import RemoteJob
from insitu.remote.client.shown import stamp
from insitu.twins.table import Table

CRITICAL = ("insitu", "torch", "transformers")
"""Packages that change what a block does; another patch version of one does not."""

Remote = bool | str | Connection


@dataclass(frozen=True)
class _Shown:
    """What can be printed, and shown in a notebook. Abstract."""

    url: str

    def _table(self) -> Table:
        raise NotImplementedError

    def __str__(self) -> str:
        return repr(self._table())

    def _repr_html_(self) -> str:
        return self._table()._repr_html_()


@dataclass(frozen=True, repr=False)
class Status(_Shown):
    """A server: `insitu.status()`."""

    models: tuple[dict[str, Any], ...]
    """Each with its name, state, kind, size in bytes, and how many jobs it runs."""
    info: dict[str, Any]
    """What the server says of itself: version, trust, limits."""
    jobs: tuple[dict[str, Any], ...]
    """One's own jobs that are not over."""

    def __repr__(self) -> str:
        return str(self)

    columns = ("model", "state", "kind", "size", "jobs")

    def rows(self) -> list[tuple[str, ...]]:
        """Its models, as a table shows them."""
        return [
            (
                words.one_line(model.get("name"), 80),
                words.one_line(model.get("state"), 20),
                words.one_line(model.get("kind"), 40),
                _size(model.get("bytes")),
                words.one_line(model.get("jobs"), 20),
            )
            for model in self.models
        ]

    def _table(self) -> Table:
        rows = self.rows()
        facts = [
            f"{name} {words.one_line(self.info[name], 40)}"
            for name in ("insitu", "python", "trust", "waiting")
            if name in self.info
        ]
        mine = f"you have {len(self.jobs)} there that are not over" if self.jobs else ""
        note = ", ".join([*facts, *filter(None, [mine])])
        return Table(f"{self.url}: {len(rows)} models", self.columns, rows, note)


@dataclass(frozen=True, repr=False)
class Comparison(_Shown):
    """Package versions side by side: `insitu.compare()`."""

    versions: dict[str, tuple[str | None, str | None]]
    """By package: here, and there."""

    @property
    def different(self) -> tuple[str, ...]:
        """Packages that both have, in different versions; the critical ones first."""
        names = [name for name, (here, there) in self.versions.items() if here and there != here]
        return tuple(sorted((n for n in names if self.versions[n][1]), key=_rank))

    @property
    def critical(self) -> tuple[str, ...]:
        """Those of `CRITICAL` that differ in more than the patch version, or are missing there."""
        return tuple(name for name in CRITICAL if self._differs(name))

    def __repr__(self) -> str:
        return str(self)

    def _differs(self, name: str) -> bool:
        here, there = self.versions.get(name, (None, None))
        return here is not None and _minor(here) != _minor(there or "")

    def _table(self) -> Table:
        names = [*CRITICAL, *(name for name in self.different if name not in CRITICAL)]
        rows = []
        for name in names:
            here, there = self.versions.get(name, (None, None))
            said = "differs" if name in self.different else "" if here and there else "one side"
            said = "critical: differs" if name in self.critical else said
            rows.append((name, here or "—", there or "—", said))
        marked = frozenset(n for n, row in enumerate(rows) if row[3].startswith("critical"))
        note = (
            f"Blocks may give other values, or fail: {', '.join(self.critical)}."
            if self.critical
            else "No critical package differs."
        )
        same = sum(here == there for here, there in self.versions.values())
        note += f" {same:,} are the same on both sides; .versions has them all."
        return Table(
            f"this machine and {self.url}",
            ("package", "here", "there", ""),
            rows,
            note,
            marked=marked,
        )


@dataclass(frozen=True, repr=False)
class Jobs(_Shown):
    """One's own jobs on a server, the newest first: `insitu.jobs()`."""

    rows: tuple[dict[str, Any], ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.rows[number]

    def __repr__(self) -> str:
        return str(self)

    def _table(self) -> Table:
        rows = [
            (
                words.one_line(row.get("id"), 64),
                words.one_line(row.get("phase"), 20),
                words.one_line(row.get("model"), 80),
                _when(row),
            )
            for row in self.rows
        ]
        next = "insitu.job(id) takes one up again." if rows else ""
        names = ("id", "phase", "model", "sent")
        return Table(f"{self.url}: {len(rows)} jobs of yours", names, rows, next)


def status(remote: Remote = True) -> Status:
    """The models of a server and what it is doing; `remote` is as for a trace.

    Raises:
        UsageError: no server is set.
        ServerUnreachableError: it does not answer.
    """
    server = Connection.of(remote)
    server_info = server.json("GET", "/v1/info")
    models = tuple(server.rows("/v1/models", "models"))
    running = tuple(row for row in server.rows("/v1/jobs", "jobs") if row.get("ended") is None)
    return Status(server.url, models, server_info, running)


def is_model_running(name: str, remote: Remote = True) -> bool:
    """Whether a server has a model loaded: `is_model_running("openai-community/gpt2")`."""
    for model in Connection.of(remote).rows("/v1/models", "models"):
        known = model.get("known_as")
        names = [model.get("name"), *(known if isinstance(known, list) else [])]
        if name in names and model.get("state") == "ready":
            return True
    return False


def compare(remote: Remote = True) -> Comparison:
    """Package versions here and on a server, side by side; shown as a table."""
    server = Connection.of(remote)
    there = {
        words.one_line(name, 80): words.one_line(version, 40)
        for name, version in list(server.json("GET", "/v1/env").items())[:2_000]
    }
    names = dict.fromkeys((*CRITICAL, *there))
    return Comparison(server.url, {name: (_here(name), there.get(name)) for name in names})


def whoami(remote: Remote = True) -> dict[str, Any]:
    """Who one is on a server: the name of the key, what it may do, when it ends."""
    told = Connection.of(remote).json("GET", "/v1/whoami")
    return {words.one_line(name, 80): _plain(value) for name, value in list(told.items())[:100]}


def jobs(remote: Remote = True) -> Jobs:
    """One's own jobs on a server, the newest first."""
    server = Connection.of(remote)
    return Jobs(server.url, tuple(server.rows("/v1/jobs", "jobs")))


def taken_up(remote: Remote = True, most: int = 20) -> list[RemoteJob]:
    """One's own jobs on a server as jobs that can be watched, the newest first."""
    server = Connection.of(remote)
    rows = [row for row in server.rows("/v1/jobs", "jobs") if words.is_id(row.get("id"))]
    return [RemoteJob(server, row["id"], title=_title(row)).start() for row in rows[:most]]


def job(id: str, remote: Remote = True) -> RemoteJob:
    """Take up a job that was sent before, from this process or another.

        job = insitu.job("270a6e4d-…")
        job.phase, job.result()

    It is followed from its first event on, in a thread of its own. Its `local()` parts are run by
    the process that sent it alone.

    Raises:
        JobLostError: the server has no such job of yours.
    """
    if not words.is_id(id):
        raise UsageError(
            f"{words.one_line(id, 80)!r} is not the id of a job.",
            "it is made of letters, digits and dashes, and stands in each status line.",
            "insitu.jobs() lists those of yours.",
        )
    server = Connection.of(remote)
    try:
        told = server.json("GET", f"/v1/jobs/{id}")
    except ServerRefusedError as error:
        if error.status != 404:
            raise
        raise JobLostError(error.what, error.why, "insitu.jobs() lists those of yours.") from None
    return RemoteJob(server, id, title=words.one_line(told.get("model") or "", 80)).start()


def _here(name: str) -> str | None:
    if name == "python":
        return platform.python_version()
    try:
        return metadata.version(name)
    except (metadata.PackageNotFoundError, ValueError):
        return None


def _minor(version: str) -> tuple[str, ...]:
    """A version without its patch and what follows: `2.13.0+cpu` is 2.13."""
    return tuple(re.split(r"[.+]", version)[:2])


def _rank(name: str) -> tuple[bool, str]:
    return name not in CRITICAL, name


def _size(count: Any) -> str:
    if isinstance(count, bool) or not isinstance(count, int) or not 0 < count < 2**60:
        return ""
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:.1f} MB"


def _title(row: Mapping[str, Any]) -> str:
    """A job of a list: its model, and when it was sent."""
    return ", ".join(filter(None, (words.one_line(row.get("model") or "", 80), _when(row)[11:])))


def _when(row: Mapping[str, Any]) -> str:
    try:
        when = words.number(row, "created")
    except Exception:
        return ""
    return "" if when is None else stamp(when).partition(",")[0]


def _plain(value: Any) -> Any:
    """A value without anything a terminal would obey."""
    if isinstance(value, list):
        return [_plain(item) for item in value[:100]]
    return value if isinstance(value, bool | int | float | None) else words.one_line(value, 200)
