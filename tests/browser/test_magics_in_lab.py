"""Findings and magics in a real JupyterLab: a click on Fix changes the cell, and what it does."""

import pytest
from widget_pages import eventually, open_cells, output_of, reviewed

pytestmark = pytest.mark.slow

WRONG = "%%trace model 'The Eiffel Tower is in the city of'\nh = model.transformer.h[1].output\n"
CELLS = [
    "%load_ext insitu\nimport insitu\nmodel = insitu.LanguageModel('demo')",
    f"{WRONG}h = h * 0\nlogits = model.lm_head.output",
    "print(tuple(logits.shape))",
    "%%trace model 'Once upon a time' --generate 6 --view generation --quiet\nids = tracer.result",
    "%lens 'The Eiffel Tower is in the city of' --target ' Paris'",
    "%run open 'The Eiffel Tower is in the city of'",
    "%run until model.transformer.h[2]\nprint(run.where)",
    "print(1)",
]


def source_of(notebook, index):
    source = notebook.cells()[index]["source"]
    return source if isinstance(source, str) else "".join(source)


def test_a_finding_is_fixed_by_a_click_with_and_without_the_application(lab):
    notebook = open_cells(lab, CELLS)
    view = notebook.page.locator(".insitu-lint_fixes")
    view.wait_for()
    assert "gives the name h another value" in view.inner_text()
    reviewed(notebook, 1, "lint_fixes")

    view.get_by_role("button", name="Fix").click()
    view.get_by_text("The cell is changed").first.wait_for()
    assert source_of(notebook, 1) == CELLS[1].replace("h = h * 0", "h[:] = h * 0")
    notebook.run(1)
    assert eventually(notebook, notebook.page.locator(".insitu-lint_fixes").count, 0) == 0

    # The same where the page does not expose JupyterLab: through the cell's own editor.
    notebook.page.evaluate(
        "text => { window.kept = window.jupyterapp; window.jupyterapp.shell.currentWidget.content"
        ".widgets[1].model.sharedModel.setSource(text); }",
        CELLS[1],
    )
    notebook.run(1)
    view.wait_for()
    notebook.page.evaluate("() => { delete window.jupyterapp; }")
    view.get_by_role("button", name="Fix").click()
    view.get_by_text("The cell is changed").first.wait_for()
    notebook.page.evaluate("() => { window.jupyterapp = window.kept; }")
    assert "h[:] = h * 0" in source_of(notebook, 1)

    # A cell that reads otherwise by now is left alone.
    notebook.page.evaluate(
        "text => window.jupyterapp.shell.currentWidget.content.widgets[1].model.sharedModel"
        ".setSource(text)",
        CELLS[1],
    )
    notebook.run(1)
    view.wait_for()
    notebook.page.evaluate(
        "() => window.jupyterapp.shell.currentWidget.content.widgets[1].model.sharedModel"
        ".setSource('h = 7')"
    )
    view.get_by_role("button", name="Fix").click()
    view.get_by_text("left as it is").first.wait_for()
    assert source_of(notebook, 1) == "h = 7"

    for name in ("lens_grid", "generation_view"):
        view = notebook.page.locator(f".insitu-{name}")
        assert eventually(notebook, view.count, 1) == 1
    assert output_of(notebook, 6).startswith("transformer.h.2.output")
    assert notebook.said == []
    assert lab.outside == []
