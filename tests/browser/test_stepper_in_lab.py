"""The stepper in a real JupyterLab: a pass driven by buttons, edited, and moved by cells."""

import pytest
from widget_pages import open_cells, output_of, reviewed

pytestmark = pytest.mark.slow

CELLS = [
    "import insitu\nmodel = insitu.LanguageModel('demo')\n"
    "run = model.open('The Eiffel Tower is in the city of')\nstepper = run.view()\nstepper",
    "print(run.where)",
    "model.transformer.h[3].output[:, -1] = 0\nprint(run.where)",
    "print(run.where, stepper.result.logits.shape[-1] == model.config.vocab_size)",
]


def test_a_pass_is_driven_from_the_page_and_from_cells(lab):
    notebook = open_cells(lab, CELLS[:1])
    view = notebook.page.locator(".insitu-stepper").first
    view.wait_for()
    site = view.locator(".site")
    site.get_by_text("Before the first module").wait_for()

    view.get_by_role("button", name="Next layer").click()
    site.get_by_text("transformer.h.0.output").wait_for()
    view.get_by_role("button", name="Next operation").click()
    site.get_by_text("transformer.h.1.ln_1.source").wait_for()
    view.locator(".row").filter(has_text="attn").first.click()
    view.get_by_role("button", name="its input").click()
    site.get_by_text("transformer.h.1.attn.input").wait_for()
    view.locator(".names button", has_text="attention_interface_0").click()
    view.get_by_role("button", name="its output").click()
    site.get_by_text("attention_interface_0.output").wait_for()

    view.get_by_label("A Python expression of value").fill("value[:, :2]")
    view.get_by_role("button", name="Write").click()
    view.get_by_role("alert").filter(has_text="does not fit: part 0: shape").wait_for()
    reviewed(notebook, 0, "stepper")
    view.get_by_role("button", name="Zero").click()
    view.get_by_role("alert").wait_for(state="detached")
    view.get_by_text("mean 0 · std 0").wait_for()

    added = notebook.page.evaluate(ADD, CELLS[1:4])
    assert added == 4
    where = "transformer.h.1.attn.source.attention_interface_0.output\n"
    assert output_of(notebook, 1) == where
    assert output_of(notebook, 2) == "transformer.h.3.output\n"
    site.get_by_text("transformer.h.3.output").wait_for()  # the view has followed the cell
    view.get_by_role("button", name="Finish").click()
    site.get_by_text("The pass has finished").wait_for()
    assert output_of(notebook, 3) == "finished True\n"
    assert view.get_by_role("button", name="Next module").is_disabled()
    assert notebook.said == []
    assert lab.outside == []


ADD = """cells => {
    const { model } = window.jupyterapp.shell.currentWidget.content;
    for (const source of cells)
        model.sharedModel.insertCell(model.cells.length, { cell_type: 'code', source });
    return model.cells.length;
}"""
