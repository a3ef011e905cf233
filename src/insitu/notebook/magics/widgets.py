"""Widgets, opened by name when a magic asks for them: the packages they need may be missing.

made("lens_grid:LensGrid", result)
"""

import importlib
from typing import Any

from insitu.errors import MissingPackageError


def made(place: str, *given: Any, **settings: Any) -> Any:
    """What a class or function of `insitu.widgets` makes of things.

    Raises:
        MissingPackageError: the packages that widgets need are not installed, or this version of
            Insitu has no such widget.
    """
    return found(place)(*given, **settings)


def found(place: str) -> Any:
    """A class or function of `insitu.widgets`: `module:name`."""
    module, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(f"insitu.widgets.{module}"), name)
    except ImportError as error:
        is_ours = str(error.name or "").startswith("insitu.")
        raise MissingPackageError(
            f"the view could not be opened: {error.name or error} is not installed.",
            "this version of Insitu does not have it."
            if is_ours
            else "views are widgets, and the packages they need come with the extra `lab`.",
            'update: pip install --upgrade "insitu[lab]".'
            if is_ours
            else 'install them: pip install "insitu[lab]".',
        ) from error
