"""Notebooks for the browser tests of widgets: cells in, outputs and pictures out."""

import json
import os
import time
from pathlib import Path

import nbformat
from lab_server import PATIENCE_S
from playwright import sync_api
from reviewed import assert_as_reviewed

LOOK = """async ([index, wanted, patience]) => {
    const look = () => {
        const cell = window.jupyterapp.shell.currentWidget.content.widgets[index];
        const view = cell.node.querySelector('.insitu-view');
        if (!view) return 'there is no view';
        const parts = [...view.children].filter(part => !part.classList.contains('spoken'));
        const chosen = [...view.querySelectorAll('[aria-selected=true], [aria-pressed=true]')];
        return JSON.stringify([
            parts.map(part => part.innerText).join('\\n'),
            chosen.map(one => one.textContent),
            [...view.querySelectorAll('canvas')].map(one => one.toDataURL()),
        ]);
    };
    const cell = window.jupyterapp.shell.currentWidget.content.widgets[index].node;
    let [seen, since, began] = [look(), Date.now(), Date.now()];
    for (;;) {
        const now = look();
        if (now !== seen || cell.querySelector('[data-asking]')) [seen, since] = [now, Date.now()];
        const isLate = Date.now() - began > patience;
        if (isLate || (Date.now() - since > 300 && (!wanted || seen === wanted))) return seen;
        await new Promise(done => setTimeout(done, 50));
    }
}"""


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
    notebook.run_all()
    assert not notebook.errors(), notebook.errors()[0]
    return notebook


def output_of(notebook, index):
    """What a cell prints when it is run now."""
    notebook.run(index)
    outputs = notebook.cells()[index]["outputs"]
    assert not notebook.errors(), notebook.errors()[0]
    return "".join(text for output in outputs for text in output.get("text", ""))


def eventually(notebook, read, wanted):
    """What is read, once it is as wanted, or as it is when patience ends."""
    deadline = time.monotonic() + PATIENCE_S
    while (seen := read()) != wanted and time.monotonic() < deadline:
        notebook.page.wait_for_timeout(50)
    return seen


def assert_prints(notebook, index, wanted):
    """A cell prints this once what was done in the page has reached the kernel.

    ipywidgets holds a change back while the kernel has not answered to the one before.
    """
    assert eventually(notebook, lambda: output_of(notebook, index), wanted) == wanted


def assert_told(notebook, expression, wanted):
    """What a Python expression is in the kernel, by way of JSON, once that has reached it."""
    assert eventually(notebook, lambda: told(notebook, expression), wanted) == wanted


def told(notebook, expression):
    """What a Python expression is in the kernel now, by way of JSON."""
    return json.loads(notebook.python(f"import json; print(json.dumps({expression}))"))


def look(notebook, index, wanted=None):
    """What the view of a cell shows once it stands still, and, where that is given, is as wanted.

    It stands still when it has no open question to the kernel, and 300 ms long shows nothing new.
    """
    return notebook.page.evaluate(LOOK, [index, wanted, PATIENCE_S * 1000])


def reviewed(notebook, index, name, *, is_alive=True):
    """A view is as it was when it was reviewed; its pictures too, where they are wanted."""
    if is_alive:
        answered(notebook, notebook.cell(index).locator(".insitu-view").first)
    assert_as_reviewed(notebook, index, name)
    pictures(notebook, index, name)


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


def answered(notebook, view):
    """Wait until a view has no open question to the kernel."""
    asking = "view => !view.closest('[data-asking]')"
    notebook.page.wait_for_function(asking, arg=view.element_handle())


def cancel(view):
    """Cancel a job: its button asks once more, for four seconds, which a busy page may miss."""
    for _ in range(10):
        view.get_by_role("button", name="Cancel", exact=True).click()
        try:
            view.get_by_role("button", name="Really cancel?").click(timeout=3_000)
        except sync_api.TimeoutError:
            continue
        break
    view.locator("[aria-current=step]", has_text="CANCELLED").wait_for()


def begin(notebook, index):
    """Run a cell, and do not wait for it."""
    notebook.page.evaluate(
        "index => { window.jupyterapp.shell.currentWidget.content.activeCellIndex = index;"
        " window.jupyterapp.commands.execute('notebook:run-cell'); }",
        index,
    )


def write(notebook, index, text):
    """Put another text into a cell."""
    notebook.page.evaluate(
        "([index, text]) => window.jupyterapp.shell.currentWidget.content.widgets[index].model"
        ".sharedModel.setSource(text)",
        [index, text],
    )


def saved(notebook, view, button, name):
    """What a view's export button saves once it stands still: a text, or the bytes of a picture."""
    answered(notebook, view)
    group = view.get_by_role("group", name=f"Export {Path(name).stem}", exact=True)
    with notebook.page.expect_download() as download:
        group.get_by_role("button", name=button, exact=True).click()
    assert download.value.suggested_filename == name
    content = Path(download.value.path()).read_bytes()
    return content if name.endswith(".png") else content.decode()
