"""No finding in any tutorial nor in the reference documents, but where a cell is meant to fail."""

from pathlib import Path

import nbformat
import pytest
import reference_cells
import torch
import walkthrough

import insitu
from insitu.notebook.lint.check import findings

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def names():
    """A notebook whose model has run, so that orders and outputs are known."""
    model = insitu.LanguageModel("demo")
    with model.trace("The Eiffel Tower is in the city of"):
        pass
    with model.generate("Once upon a time", max_new_tokens=2):
        pass
    return {"model": model, "llm": model, "llama": model, "torch": torch}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_a_tutorial_raises_no_alarm(notebook, names):
    for cell in nbformat.read(notebook, 4).cells:
        fails = "raises-exception" in cell.metadata.get("tags", [])
        if cell.cell_type == "code" and not fails:
            assert findings(cell.source, names) == [], cell.source


@pytest.mark.skipif(not reference_cells.FOLDER.is_dir(), reason="the documents are not here")
@pytest.mark.parametrize("document", sorted(reference_cells.CUTS))
def test_the_reference_documents_raise_no_alarm(document, names):
    for cell in reference_cells.cells(document):
        code = walkthrough.rewritten(cell.code)
        found = [it for it in findings(code, names) if not says_it_fails(code, it)]
        assert found == [], cell.code


def says_it_fails(code, finding):
    """A cell that shows an error on purpose says so in its comment."""
    return "ERROR" in code.splitlines()[finding.line - 1]
