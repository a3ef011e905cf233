"""Notebooks for the browser tests of widgets: cells in, outputs and pictures out."""

import os
from pathlib import Path

import nbformat


def open_cells(lab, cells, name="views.ipynb"):
    """A notebook of these cells, open in JupyterLab, all but the last one run."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    book.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    nbformat.write(book, lab.root / name)
    notebook = lab.open(name)
    notebook.page.on(
        "console", lambda said: said.type == "error" and notebook.said.append(said.text)
    )
    notebook.run_all()
    assert notebook.errors() == []
    return notebook


def output_of(notebook, index):
    """What a cell prints when it is run now."""
    notebook.run(index)
    outputs = notebook.cells()[index]["outputs"]
    assert notebook.errors() == []
    return "".join(text for output in outputs for text in output.get("text", ""))


def pictures(notebook, index, name):
    """The output of a cell, in light and dark, where SCREENSHOTS names a folder."""
    if not (folder := os.environ.get("SCREENSHOTS")):
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    for theme in ("light", "dark"):
        notebook.paint(theme)
        notebook.cell(index).locator(".insitu-view").first.screenshot(
            path=Path(folder) / f"{name}-{theme}.png"
        )
    notebook.paint("light")
