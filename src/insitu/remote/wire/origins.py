"""Where modules come from: what goes along with a block by itself, and what is there already.

is_sent("mylab.centre")     # a .py file of the user's own: its source goes along
register("mypackage")       # sends one from site-packages too
"""

import importlib.machinery
import importlib.util
import os
import sys
import sysconfig
from functools import lru_cache
from types import ModuleType

from insitu.errors import UsageError

_registered: set[str] = set()
_OURS = "insitu"


def register(package: str | ModuleType) -> None:
    """Send a package of Python files along with every block that uses it.

        insitu.register("mypackage")

    The user's own files (scripts, modules beside them, editable installs) go by themselves; this is
    for packages in site-packages that a server has not.

    Raises:
        UsageError: there is no such package, or it is not made of Python files.
    """
    name = top(package.__name__ if isinstance(package, ModuleType) else str(package))
    file = source_file(name)
    if file is None or name == _OURS:
        raise UsageError(
            f"{name} cannot be registered.",
            "a package goes along as the text of its Python files, and this one "
            + ("is on every server." if name == _OURS else "has none that could be found here."),
            "give the name of a package that is installed here, as it is imported.",
        )
    _registered.add(name)


def registered() -> frozenset[str]:
    """The packages that are sent besides the user's own files."""
    return frozenset(_registered)


def forget(package: str) -> None:
    """Take a registration back."""
    _registered.discard(top(package))


def top(module: str) -> str:
    """The package that a module is in."""
    return module.partition(".")[0]


def is_sent(module: str) -> bool:
    """Whether a module's source goes along: it is the user's own, or registered."""
    if module == "__main__":
        return True
    package = top(module)
    if package == _OURS:
        return False
    if package in _registered:
        return True
    file = source_file(module)
    return file is not None and not is_installed(file)


def source_file(module: str) -> str | None:
    """The .py file of a module; None where it is made of something else, or not there."""
    known = sys.modules.get(module)
    spec = getattr(known, "__spec__", None)
    file = getattr(known, "__file__", None)
    if known is None:
        try:
            spec = _found(module)
        except (ImportError, AttributeError, ValueError):
            return None
        file = getattr(spec, "origin", None)
    if not isinstance(file, str) or not file.endswith(".py"):
        return None
    return file if os.path.exists(file) or known is not None else None


def _found(module: str) -> importlib.machinery.ModuleSpec | None:
    """The spec of a module that is not imported; nothing is run to find it."""
    path, spec = None, None
    for count in range(1, module.count(".") + 2):
        name = ".".join(module.split(".")[:count])
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None:
            return importlib.util.find_spec(module) if count == 1 and "." not in module else None
        path = list(spec.submodule_search_locations or ())
    return spec


@lru_cache(maxsize=1)
def _places() -> tuple[tuple[str, ...], tuple[str, ...]]:
    paths = sysconfig.get_paths()
    library = {os.path.realpath(paths[key]) for key in ("stdlib", "platstdlib")}
    installed = {os.path.realpath(paths[key]) for key in ("purelib", "platlib")}
    return tuple(one + os.sep for one in library), tuple(one + os.sep for one in installed)


def is_installed(file: str) -> bool:
    """Whether a file belongs to Python or to an installed package."""
    real = os.path.realpath(file)
    if f"{os.sep}site-packages{os.sep}" in real or f"{os.sep}dist-packages{os.sep}" in real:
        return True
    return real.startswith(_places()[0] + _places()[1])
