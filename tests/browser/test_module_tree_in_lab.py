"""The tree of modules in a real JupyterLab: walked, searched, and its effect on Python."""

import csv
import io

import pytest
from widget_pages import assert_prints, eventually, open_cells, pictures, reviewed, saved, told

pytestmark = pytest.mark.slow

CELLS = [
    "import insitu\nmodel = insitu.LanguageModel('demo')\ntree = model.tree()\ntree",
    "print('selected', tree.selected, type(tree.module._module).__name__)",
]


def test_a_click_and_the_arrow_keys_select_in_python(lab):
    notebook = open_cells(lab, CELLS)
    view = notebook.page.locator(".insitu-module_tree")
    view.wait_for()
    view.get_by_role("searchbox").fill("h.3.attn")
    view.get_by_role("treeitem").filter(has_text="c_proj").first.click()
    view.locator(".told").wait_for()

    assert_prints(notebook, 1, "selected transformer.h.3.attn.c_proj Conv1D\n")
    reviewed(notebook, 0, "module_tree")

    view.get_by_role("searchbox").fill("")
    view.locator("[role=tree]").focus()
    for key in ("Home", "ArrowDown", "ArrowDown"):
        notebook.page.keyboard.press(key)
    assert_prints(notebook, 1, "selected transformer.wte Embedding\n")

    view.get_by_role("button", name="Reach").focus()
    notebook.page.keyboard.press("Enter")
    view.get_by_text("As it is run here: float32 on cpu, sdpa attention").wait_for()
    assert told(notebook, "tree.overlay") is True
    view.get_by_role("button", name="never called: show these 1").click()
    held = view.get_by_role("treeitem").filter(has_text="never called")
    assert held.locator("code").all_inner_texts() == ["h"]
    reviewed(notebook, 0, "module_tree_reach")
    rows = list(csv.reader(io.StringIO(saved(notebook, view, "CSV", "modules.csv"))))
    reach = {row[0]: row[5] for row in rows}
    assert reach["transformer.h"] == "never called"
    assert reach["transformer.h.3.attn"] == "fused attention"
    assert notebook.said == lab.outside == []


RUNS = [
    "import insitu, time\nmodel = insitu.LanguageModel('demo')\ntree = model.tree()\ntree",
    "with model.trace('The Eiffel Tower is in the city of'):\n"
    "    h = model.transformer.h[0].mlp.output\n    model.transformer.h[2].output[:] *= 2",
    "held = model.open('The Eiffel Tower is in')\nheld.until(model.transformer.h[1])",
    "with model.generate('Once upon a time', min_new_tokens=110, max_new_tokens=110) as tracer:\n"
    "    for step in tracer.iter[:]:\n        model.transformer.h[0].ln_1.output\n"
    "        time.sleep(0.3)\n        if tree.selected:\n            tracer.stop()",
]


def test_the_tree_marks_what_runs_do_while_they_run(lab):
    notebook = open_cells(lab, RUNS[:1] + ["pass"] + RUNS[1:2])
    view = notebook.cell(0).locator(".insitu-module_tree")
    sign = view.locator('[role=treeitem] [role=img][aria-label="ran, read, written"]')
    sign.wait_for()  # h.2, folded or not
    assert sign.inner_text() == "●"
    assert view.get_by_label("inside: ran, read", exact=True).count() == 0  # h.0 is unfolded
    shapes = view.get_by_text("→ float32[1, ")  # are told when the pass is over, marks before
    assert eventually(notebook, lambda: shapes.count() > 3, True)
    pictures(notebook, 0, "module_tree_marks")
    rows = list(csv.reader(io.StringIO(saved(notebook, view, "CSV", "modules.csv"))))
    names = told(notebook, "[name for name, _ in model._module.named_modules()]")
    assert [row[0] for row in rows[1:]] == names
    assert {row[0]: row[4] for row in rows}["transformer.h.2"] == "ran read written"
    assert "● " in saved(notebook, view, "SVG", "modules.svg")

    notebook.page.evaluate(
        f"""code => {{
        const panel = window.jupyterapp.shell.currentWidget;
        panel.content.widgets[1].model.sharedModel.setSource(code);
        panel.content.widgets[2].model.sharedModel.setSource({RUNS[3]!r});
        panel.content.activeCellIndex = 2;
        window.jupyterapp.commands.execute('notebook:run-cell');
    }}""",
        RUNS[2],
    )
    row = view.get_by_role("treeitem").filter(has_text="ln_1").first
    row.locator('[aria-label^="ran, read"]').wait_for()  # the pass stands there, most of the time
    # The marks come while the cell runs: the kernel's own status tells of the view's questions too.
    state = "() => window.jupyterapp.shell.currentWidget.content.widgets[2].model.executionState"
    assert notebook.page.evaluate(state) == "running"
    view.get_by_role("treeitem").nth(1).click()  # and a click reaches it: it ends
    notebook.wait_idle()

    notebook.run(1)
    stands = view.locator('[role=treeitem] [aria-label*="the pass stands here"]')
    stands.first.wait_for()
    assert stands.first.inner_text() == "▶"
    reviewed(notebook, 0, "module_tree_held")
    assert notebook.errors() == notebook.said == lab.outside == []
