"""The server that is set, as `%remote` shows it: models, queue, who one is there.

status()                    # a Table
"""

from collections.abc import Iterator, Mapping
from typing import Any

from insitu.remote.client import info, words
from insitu.remote.client.connection import Connection
from insitu.twins.table import Table


def status() -> Table:
    """The server in CONFIG.API.HOST.

    Raises:
        ServerUnreachableError: it does not answer.
        ServerRefusedError: it does not know the key.
    """
    server = Connection.of(True)
    found, me = info.status(server), info.whoami(server)
    rows = found.rows()
    return Table(
        f"{server.url}: {len(rows)} model{'s' * (len(rows) != 1)}",
        found.columns,
        rows,
        _about(found.info),
        frozenset({"size", "jobs"}),
        (_who(me), *_mine(len(found.jobs)), *_differences(server), "remote=True means this one."),
    )


def _about(told: Mapping[str, Any]) -> str:
    names = ("insitu", "python", "trust")
    facts = [f"{name} {words.one_line(told[name], 40)}" for name in names if name in told]
    count = told.get("waiting")
    if isinstance(count, int) and not isinstance(count, bool):  # an older server does not say
        many = f"{words.one_line(count, 20)} job{'s' * (count != 1)}"
        facts.append(f"{many if count else 'no job'} waiting")
    return f"{', '.join(facts)}."


def _who(me: Mapping[str, Any]) -> str:
    scopes = me.get("scopes")
    may = f", who may {', '.join(map(str, scopes))}" if isinstance(scopes, list) and scopes else ""
    until = f", until {words.one_line(me['expires'], 40)}" if me.get("expires") else ""
    return f"You are {words.one_line(me.get('name'), 80)}{may}{until}."


def _mine(count: int) -> Iterator[str]:
    if count:
        jobs = "One of your jobs there is" if count == 1 else f"{count} of your jobs there are"
        yield f"{jobs} not over: %jobs --remote."


def _differences(server: Connection) -> Iterator[str]:
    """Packages that matter, where they differ."""
    compared = info.compare(server)
    for name in compared.critical:
        here, there = compared.versions[name]
        yield f"{name} is {here} here and {there or 'missing'} there: blocks may give other values."
