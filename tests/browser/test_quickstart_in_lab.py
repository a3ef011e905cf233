"""The quickstart notebook in a real JupyterLab, as somebody who opens it meets it.

SCREENSHOTS=/tmp/quickstart pytest -m slow tests/browser      # keeps the pictures
"""

import os
import shutil
from pathlib import Path

import pytest

QUICKSTART = Path(__file__).parents[2] / "notebooks" / "00_quickstart.ipynb"
CARD = ".insitu:has(table)"

pytestmark = pytest.mark.slow


def test_the_quickstart_runs_in_jupyterlab_and_shows_its_cards(lab, tmp_path):
    shutil.copy(QUICKSTART, lab.root)
    notebook = lab.open(QUICKSTART.name)

    notebook.command("notebook:clear-all-cell-outputs")
    notebook.run_all()

    assert not notebook.errors()
    magic = [n for n, cell in enumerate(notebook.cells()) if is_shown_trace(cell)]
    assert len(magic) >= 3
    for number in magic:
        card = notebook.cell(number).locator(CARD).first
        card.scroll_into_view_if_needed()
        assert card.is_visible()

    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    for theme in ("light", "dark"):
        notebook.paint(theme)
        notebook.pictures(folder, theme)
        notebook.show(edit_in(notebook.cells()))
        notebook.page.screenshot(path=folder / f"quickstart-{theme}.png")  # as in docs/images
    assert lab.outside == []


def is_shown_trace(cell) -> bool:
    """A `%%trace` cell that is meant to end well, with its card."""
    first = source_of(cell).partition("\n")[0]
    failing = "raises-exception" in cell["metadata"].get("tags", [])
    return first.startswith("%%trace") and "--quiet" not in first and not failing


def edit_in(cells) -> int:
    """The words above the first `%%trace` cell that writes."""
    shown = (n for n, cell in enumerate(cells) if is_shown_trace(cell))
    return next(n for n in shown if ".output[:, -1] =" in source_of(cells[n])) - 1


def source_of(cell) -> str:
    return cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
