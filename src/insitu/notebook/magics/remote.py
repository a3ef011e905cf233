"""`%remote [URL [KEY]]`: the server that `remote=True` and `%%trace … --remote` mean.

%remote http://127.0.0.1:8765
%remote
"""

import os
from collections.abc import Mapping
from typing import Any

from insitu.errors import UsageError
from insitu.notebook.magics.line import Syntax, taken
from insitu.notebook.magics.names import quoted, value
from insitu.settings import CONFIG, KEY_VARIABLE
from insitu.twins.table import Table

SYNTAX = Syntax("%remote", "%remote [URL] [KEY]")


def remote(ip: Any, line: str) -> Table:
    """Choose the server that blocks are sent to, and look at it.

        %remote http://127.0.0.1:8765           for this session: CONFIG.API.HOST
        %remote https://models.example.org KEY  with a key; better in INSITU_API_KEY
        %remote                                 its models, its queue, and who you are there

    URL and KEY may be names of variables. If the server does not answer, the setting stays as it
    was. CONFIG.save() keeps it for later sessions.
    """
    from insitu.notebook.remote_status import status  # brings the HTTP client along

    given = taken(SYNTAX, line).words
    if not given:
        if not CONFIG.API.HOST:
            raise UsageError(
                "%remote was given no server, and none is set.",
                "CONFIG.API.HOST is None.",
                "start one with `insitu serve demo`, and write %remote http://127.0.0.1:8765.",
            )
        return status()
    if len(given) > 2:
        raise UsageError(
            f"%remote was given {len(given)} words.",
            f"the line is {SYNTAX.usage}.",
            "give the address, and the key if the server asks for one.",
        )
    url = _text(given[0], "server", ip.user_ns)
    key = _text(given[1], "key", ip.user_ns) if given[1:] else None
    _check_key(key)
    settings = {"HOST": url} if key is None else {"HOST": url, "KEY": key}
    with CONFIG.API.override(**settings):
        shown = status()
    for name, it in settings.items():  # it has answered
        setattr(CONFIG.API, name, it)
    return shown


def _text(word: str, role: str, names: Mapping[str, Any]) -> str:
    """A word of the line: in quotes, the name of a variable that holds text, or as it stands."""
    if word[0] in "'\"":
        return str(value(SYNTAX, word, role, names))
    known = names.get(word)
    if isinstance(known, str):
        return known
    if role == "server" and not word.startswith(("http://", "https://")):
        raise UsageError(
            f"%remote was given {word[:80]}, which is no address of a server.",
            "an address begins with http:// or https://; a variable that holds one does as well.",
            f"write %remote http://127.0.0.1:8765, not {quoted(word)}.",
        )
    return word


def _check_key(key: str | None) -> None:
    if key is not None and os.environ.get(KEY_VARIABLE, key) not in ("", key):
        raise UsageError(
            f"%remote was given a key, and {KEY_VARIABLE} holds another.",
            f"{KEY_VARIABLE} comes before a key that is set here, so this one would not be sent.",
            f"leave the key out, or remove {KEY_VARIABLE} from the environment.",
        )
