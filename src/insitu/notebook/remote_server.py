"""The server that a magic's line names: `--remote http://127.0.0.1:8765`, `--remote url`.

server_of(SYNTAX, found.value("--remote"), ip.user_ns)      # True without one: CONFIG.API.HOST
"""

from collections.abc import Mapping
from typing import Any

from insitu.errors import UsageError
from insitu.notebook.magics.line import Syntax
from insitu.notebook.magics.names import value


def server_of(syntax: Syntax, text: str, names: Mapping[str, Any]) -> bool | str:
    """What the URL of a line means; a name is that of a variable.

    Raises:
        UsageError: it is no text, or unknown.
    """
    if not text or text == "local" or text.startswith(("http://", "https://")):
        return text or True
    found = value(syntax, text, "server", names)
    if isinstance(found, str):
        return found
    raise UsageError(
        f"the server of {syntax.magic} is {type(found).__name__}, not text.",
        f"{text} is looked up among the notebook's variables.",
        "give an address, as in --remote http://127.0.0.1:8765.",
    )
