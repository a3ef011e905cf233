"""Where a line is, as the user knows it: `cell 4, line 7`, `mylab.py, line 12`."""

import os
import sys
from typing import Any


def place_of(file: str, line: int) -> str:
    """A line's place in a cell or a file."""
    cell = _cell(file)
    if cell is not None:
        return f"cell {cell}, line {line}"
    name = os.path.basename(file)
    return f"line {line}" if not name or name.startswith("<") else f"{name}, line {line}"


def _cell(file: str) -> Any:
    """The number of the cell that a name stands for, where a notebook is running."""
    shells = getattr(sys.modules.get("IPython.core.interactiveshell"), "InteractiveShell", None)
    if shells is None or not shells.initialized():
        return None
    compiler = shells.instance().compile
    return getattr(compiler, "_filename_map", {}).get(file)
