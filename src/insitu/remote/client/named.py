"""Which names a server may give values to: those that the block speaks of, and no others of yours.

check_result(values, taken, body, given, url)      # before any of them is assigned
check_given(values, wanted, sites, url)            # before a `local()` part is run on them

A server that could choose names would write over any variable of a notebook, and over the paths
that a `local()` part uses.
"""

from collections.abc import Mapping
from typing import Any

from insitu.engine.capture.scope import Body
from insitu.errors import ServerError
from insitu.remote.blocks.run import RETURNED
from insitu.remote.blocks.taken import Taken
from insitu.remote.client import words

_NEXT = "nothing of it was taken; have who runs the server look at it, or use another."


def check_result(
    values: Mapping[str, Any], taken: Taken | None, body: Body | None, given: Mapping[str, Any],
    url: str,
) -> None:  # fmt: skip
    """Refuse a result with a name that the block neither assigns nor was given to fill.

    Args:
        values: what the server sent, by name.
        taken: the block as the server has it; None for a call without a block.
        body: the block as it stands here.
        given: what the server was given, by name.
        url: where the server is.

    Raises:
        ServerError: there is one.
    """
    if body is None or taken is None:
        stored = frozenset({RETURNED})
        if RETURNED not in values:
            raise ServerError(
                f"the server at {url} sent a result without a value.",
                "what a call without a block returns comes back as one.",
                _NEXT,
            )
    else:
        stored = body.stored if body.target in taken.stores else body.stored - {body.target}
    for name, value in values.items():
        if name not in stored and not fills(given.get(name), value):
            raise ServerError(
                f"the server at {url} sent a value for {words.one_line(name, 80)!r}, a name that "
                "is not its to set.",
                "the block does not assign it, nor was it given a list or dict of that name to "
                "put values into.",
                _NEXT,
            )


def fills(given: Any, value: Any) -> bool:
    """Whether a value is the new content of a given one."""
    return (isinstance(given, list) and isinstance(value, list)) or (
        isinstance(given, dict) and isinstance(value, dict)
    )


def check_given(
    values: Mapping[str, Any], wanted: tuple[str, ...], sites: list[str], url: str
) -> None:
    """Refuse values for a `local()` part that it has not asked for, or too few of them.

    Args:
        values: what the server handed over, by name.
        wanted: the names that the part reads of the block.
        sites: under which names it is given the sites it reads.
        url: where the server is.

    Raises:
        ServerError: there is one.
    """
    for name in values:
        if name not in wanted and name not in sites:
            raise ServerError(
                f"the server at {url} handed {words.one_line(name, 80)!r} to a local() part that "
                "did not ask for it.",
                f"the part reads {', '.join(wanted) or 'nothing'} of the block; other names on "
                "this machine are not a server's to set.",
                _NEXT,
            )
    missing = len(sites) - sum(name in values for name in sites)
    if missing:
        raise ServerError(
            f"the server at {url} handed too few values to a local() part.",
            f"the part reads {len(sites)} sites, and {missing} of them are missing.",
            _NEXT,
        )


def no_such_part(index: int, count: int, url: str) -> ServerError:
    """The error about a part that the block does not have."""
    return ServerError(
        f"the server at {url} came to local() part {index}, which the block does not have.",
        f"it has {count}, counted from 0." if count else "it has none.",
        _NEXT,
    )


def unreadable(why: str, url: str) -> ServerError:
    """The error about values for a part that cannot be read."""
    return ServerError(
        f"the server at {url} handed a local() part values that cannot be read.", why, _NEXT
    )
