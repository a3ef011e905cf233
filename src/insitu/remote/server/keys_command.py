"""`insitu keys add NAME | list | revoke NAME`."""

import argparse
import time

from insitu.errors import UsageError
from insitu.remote.server.keys import Keys
from insitu.remote.server.options import data_folder


def run(options: argparse.Namespace) -> None:
    """Do what the command line says.

    Raises:
        UsageError: it names what is not there.
    """
    keys = Keys(data_folder(options.data) / "keys.sqlite")
    try:
        {"add": _add, "list": _list, "revoke": _revoke}[options.act](keys, options)
    finally:
        keys.close()


def _add(keys: Keys, options: argparse.Namespace) -> None:
    scopes = tuple(it.strip() for it in options.scopes.split(",") if it.strip())
    key = keys.add(options.name, scopes, options.expires)
    until = "" if options.expires is None else f", until {_day(time.time(), options.expires)}"
    print(key)
    print(f"\nThe key of {options.name} ({', '.join(scopes)}{until}). It is not shown again.")
    print(f'There: export INSITU_API_KEY={key}   or   CONFIG.set_default_api_key("…")')


def _list(keys: Keys, options: argparse.Namespace) -> None:
    rows = [("name", "scopes", "made", "expires", "state")]
    now = time.time()
    for it in keys.list():
        expires = "never" if it.expires is None else _day(it.expires)
        rows.append((it.name, ",".join(it.scopes), _day(it.created), expires, it.state(now)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).strip())


def _revoke(keys: Keys, options: argparse.Namespace) -> None:
    number = keys.revoke(options.name)
    if not number:
        raise UsageError(
            f"{options.name} has no key.",
            f"{keys.path} knows {', '.join(sorted({it.name for it in keys.list()})) or 'nobody'}.",
            "insitu keys list shows every key; --data names another server's folder.",
        )
    print(f"{options.name}'s key opens nothing any more. Jobs of {options.name} that run go on.")


def _day(time_s: float, plus_days: float = 0.0) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(time_s + plus_days * 86_400))
