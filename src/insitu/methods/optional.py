"""Packages that only some parts need, imported when they are.

plotly = package("plotly.graph_objects", "plot() draws with plotly", "insitu[lab]")
"""

import importlib
from typing import Any

from insitu.errors import MissingPackageError


def package(name: str, why: str, extra: str) -> Any:
    """Import a package that may not be installed.

    Raises:
        MissingPackageError: it is not.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = name.partition(".")[0]
        raise MissingPackageError(
            f"the package {missing} is not installed.",
            f"{why}, and nothing else here needs it.",
            f'install it: pip install "{extra}" (or pip install {missing}).',
        ) from error
