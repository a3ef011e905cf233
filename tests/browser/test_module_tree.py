"""The tree of modules in a real JupyterLab: walked, searched, and its effect on Python."""

import pytest
from widget_pages import open_cells, output_of, pictures

pytestmark = pytest.mark.slow

CELLS = [
    "import insitu\nmodel = insitu.LanguageModel('demo')\ntree = model.tree()\ntree",
    "print('selected', tree.selected, type(tree.module._module).__name__)",
]


def test_a_click_in_the_tree_selects_in_python(lab):
    notebook = open_cells(lab, CELLS)
    view = notebook.page.locator(".insitu-module_tree")
    view.wait_for()
    view.get_by_role("searchbox").fill("h.3.attn")
    view.get_by_role("treeitem").filter(has_text="c_proj").first.click()
    view.locator(".told").wait_for()

    assert output_of(notebook, 1) == "selected transformer.h.3.attn.c_proj Conv1D\n"
    pictures(notebook, 0, "module_tree")
    assert lab.outside == []


def test_the_arrow_keys_walk_it(lab):
    notebook = open_cells(lab, CELLS)
    notebook.page.locator(".insitu-module_tree [role=tree]").focus()
    for key in ("Home", "ArrowDown", "ArrowDown"):
        notebook.page.keyboard.press(key)
    assert output_of(notebook, 1).startswith("selected transformer.wte ")
