"""The run ledger in a real JupyterLab: filled by cells, compared, run again from the page."""

import pytest
from widget_pages import assert_prints, open_cells, reviewed

pytestmark = pytest.mark.slow

TRACE = (
    '%%trace model "The Eiffel Tower is in the city of"\n'
    "model.transformer.h[2].output[:, -1] *= {}\n"
    "logits = model.lm_head.output"
)
CELLS = [
    "%load_ext insitu\nimport insitu\nmodel = insitu.LanguageModel('demo')\n"
    "view = insitu.widgets.RunLedger()\nview",
    TRACE.format(2),
    TRACE.format(-3),
    "print(len(insitu.widgets.ledger), sorted(view.chosen))",
]


def test_runs_are_noted_compared_and_run_again(lab):
    notebook = open_cells(lab, CELLS)
    view = notebook.page.locator(".insitu-run_ledger")
    view.get_by_text("2 runs", exact=True).wait_for()

    view.get_by_label("Tick run 1").check()
    view.get_by_label("Tick run 2").check()
    view.get_by_role("button", name="Compare").click()
    view.locator("pre .second").get_by_text("*= -3").wait_for()
    assert_prints(notebook, 3, "2 [1, 2]\n")
    reviewed(notebook, 0, "run_ledger")

    with notebook.page.expect_download() as saved:
        view.get_by_role("button", name="Save as notebook").click()
    assert saved.value.suggested_filename == "runs.ipynb"

    view.get_by_label("Tick run 2").uncheck()
    view.get_by_role("button", name="Run again").click()
    view.get_by_text("3 runs", exact=True).wait_for()
    assert_prints(notebook, 3, "3 [1]\n")
    assert notebook.said == []
    assert lab.outside == []
