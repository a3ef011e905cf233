"""Names that do not exist, and the nearest ones that do.

nearest("trasformer", gpt2._modules)     # ["transformer"]
"""

import difflib
from collections.abc import Iterable

from torch import nn

from insitu.errors import UnknownModuleError

SHOWN_MAX = 8
"""How many names an error lists."""


def nearest(name: str, names: Iterable[str], likeness: float = 0.5) -> list[str]:
    """Names like this one, the nearest first."""
    return difflib.get_close_matches(name, list(names), n=3, cutoff=likeness)


def unknown(
    module: nn.Module, path: str, name: str, more: Iterable[str] = ()
) -> UnknownModuleError:
    """The error for a name that a module does not have; `more` are names given by the user."""
    where = path or type(module).__name__
    names = [*module._modules.keys(), *more]
    shown = ", ".join(names[:SHOWN_MAX]) + (", …" if len(names) > SHOWN_MAX else "")
    close = nearest(name, names)
    prefix = f"{path}." if path and path != "model" else ""
    return UnknownModuleError(
        f"{where} has no module or attribute {name!r}.",
        f"{type(module).__name__} has {shown or 'no submodules'}.",
        f"did you mean {prefix}{close[0]}?" if close else "print(model) shows every module.",
    )
