"""A cache's view in a real JupyterLab while the pass that fills it goes on, step by step."""

import pytest
from widget_pages import assert_told, open_cells

pytestmark = pytest.mark.slow

CELLS = [
    "import insitu, pathlib, time\nmodel = insitu.LanguageModel('demo')\n"
    "gate = pathlib.Path('gate')\ngate.write_text('-1')\n"
    "def wait(step):\n    while int(gate.read_text() or -1) < step:\n        time.sleep(0.02)",
    "with model.generate('The Eiffel Tower is in', max_new_tokens=3) as tracer:\n"
    "    cache = tracer.cache('transformer.h.*')\n"
    "    view = cache.view()\n    view.show_now()\n"
    "    for step in tracer.iter[:]:\n"
    "        logits = model.lm_head.output\n        wait(step)",
]


def test_a_view_follows_the_generation_that_fills_its_cache(lab):
    notebook = open_cells(lab, [CELLS[0], ""])
    gate = lab.root / "gate"
    page = notebook.page
    page.evaluate(
        """code => {
            const shell = window.jupyterapp.shell.currentWidget;
            shell.content.widgets[1].model.sharedModel.setSource(code);
            shell.content.activeCellIndex = 1;
            void window.jupyterapp.commands.execute('notebook:run-cell');
        }""",
        CELLS[1],
    )
    view = page.locator(".insitu-cache_inspector")
    view.get_by_text("6 tensors").wait_for()
    view.get_by_text("more to come").wait_for()
    gate.write_text("0")
    view.get_by_text("12 tensors").wait_for()  # the second step's, while the cell is still running
    row = view.get_by_role("option").filter(has_text="transformer.h.2[0].output")
    row.click()
    view.locator(".bar b").filter(has_text="h.2[0].output").wait_for()
    before = view.get_by_role("listbox").evaluate("list => list.scrollTop")
    gate.write_text("9")
    view.get_by_text("18 tensors").wait_for()
    view.get_by_text("more to come").wait_for(state="detached")
    notebook.wait_idle()
    chosen = view.locator("[aria-selected=true]")
    assert "transformer.h.2[0].output" in chosen.inner_text()
    assert view.get_by_role("listbox").evaluate("list => list.scrollTop") == before
    assert_told(notebook, "[view.chosen, view.count, view.growing]", [2, 18, False])
    entry = "cache['model.transformer.h.2'][0].output"
    assert_told(notebook, f"view.tensor.equal({entry})", True)
    assert notebook.said == []
    assert lab.outside == []
