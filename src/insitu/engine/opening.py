"""Views that a higher layer opens for things of the engine: `model.tree()`, `cache.view()`.

opening.register(tree="insitu.widgets.opening:tree")     # once, by the package
opening.opened("tree", model)                            # imports it, and opens the view
"""

import importlib
from typing import Any

from insitu.errors import MissingPackageError

_places: dict[str, str] = {}


def register(**places: str) -> None:
    """Say where the functions are that open views: `module:function`."""
    _places.update(places)


def opened(name: str, thing: Any, **settings: Any) -> Any:
    """The view of that name of a thing.

    Raises:
        MissingPackageError: the packages that views need are not installed.
    """
    module, _, function = _places[name].partition(":")
    try:
        opener = getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise MissingPackageError(
            f"the view could not be opened: {error.name or error} is not installed.",
            "views are widgets, and the packages they need come with the extra `lab`.",
            'install them: pip install "insitu[lab]".',
        ) from error
    return opener(thing, **settings)
