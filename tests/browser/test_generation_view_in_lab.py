"""A generation in a real JupyterLab: it fills while its cell runs, is scrubbed, stopped, forked."""

import pytest
from widget_pages import begin, eventually, look, open_cells, output_of, reviewed, told, write

pytestmark = pytest.mark.slow

CELLS = [
    "import insitu, itertools, time\n"
    "from insitu.widgets import watch_generation\n"
    "model, steps = insitu.LanguageModel('demo'), itertools.count()\n"
    "def slowly(model):\n"
    "    time.sleep(0.3 if next(steps) < 12 else 2)\n"  # a busy machine is in time to stop it
    "    model.layers[0].resid_post[:] += 0",
    "view = watch_generation(model, 'The Eiffel Tower is in the city of', max_new_tokens=80,\n"
    "                        edit=slowly)\n"
    "view",
    "print([(b.why, b.start, b.parent, b.state, len(b.own)) for b in view.branches])",
]

HELD = [
    "import insitu, itertools, pathlib, time\n"
    "from insitu.widgets import watch_generation\n"
    "model, steps = insitu.LanguageModel('demo'), itertools.count()\n"
    "def held(model):\n"
    "    if next(steps) == 30:\n"
    "        while not pathlib.Path('go').exists(): time.sleep(0.02)\n"
    "    model.layers[0].resid_post[:] += 0",
    "pass",
]
AT_WORK = """view => {
    const [lanes, typed] = [view.querySelector('.lanes'), view.querySelector('[name=edit]')];
    return [lanes.scrollLeft, document.activeElement === typed, typed.value,
            typed.selectionStart, typed.selectionEnd, view.querySelector('details').open,
            view.querySelector('.lanes [aria-selected=true]').ariaLabel.split(',')[0]];
}"""


def test_the_end_of_its_cell_leaves_a_view_as_the_user_has_it(lab):
    notebook = open_cells(lab, HELD)
    write(notebook, 1, "view = watch_generation(model, 'Once', max_new_tokens=31, edit=held)")
    begin(notebook, 1)
    view = notebook.page.locator(".insitu-generation_view")
    view.locator(".lanes .token").nth(29).wait_for()
    view.locator(".lanes .token").nth(12).click()  # it follows the last step no more
    view.locator("details summary").first.click()
    view.locator("[name=edit]").fill("model.layers[2]")
    view.evaluate(
        "view => { view.querySelector('.lanes').scrollLeft = 70;"
        " view.querySelector('[name=edit]').setSelectionRange(2, 7); }"
    )
    wanted = [70, True, "model.layers[2]", 2, 7, True, "step 12"]
    assert view.evaluate(AT_WORK) == wanted
    around = "view => view.closest('.jp-OutputArea-output')"
    view.evaluate(f"view => {{ ({around})(view).firstElementChild.dataset.shown = 'before'; }}")

    (lab.root / "go").touch()
    notebook.wait_idle()
    view.get_by_text("generating").wait_for(state="detached")
    shown = f"view => ({around})(view).firstElementChild.dataset.shown ?? 'anew'"
    assert view.evaluate(shown) == "anew"  # JupyterLab has shown it again, with its last twins
    assert eventually(notebook, lambda: view.evaluate(AT_WORK), wanted) == wanted
    notebook.page.keyboard.type("is")
    assert view.locator("[name=edit]").input_value() == "moisayers[2]"
    assert view.evaluate(f"view => ({around})(view).style.minHeight") == ""
    assert told(notebook, "len(view.branches[0].own)") == 31
    assert notebook.said == lab.outside == []


def test_a_generation_fills_is_stopped_and_forks(lab):
    notebook = open_cells(lab, [CELLS[0]])
    page = notebook.page
    for cell in CELLS[1:]:
        notebook.command("notebook:insert-cell-below")
        page.evaluate(
            "text => window.jupyterapp.shell.currentWidget.content.activeCell.model"
            ".sharedModel.setSource(text)",
            cell,
        )
    begin(notebook, 1)

    view = page.locator(".insitu-generation_view")
    view.locator(".lanes .token").nth(5).wait_for()
    assert "generating" in view.inner_text()  # the cell is still running
    assert view.count() == 1
    measure, token_typed = view.locator("select"), view.locator("[name=token]")
    measure.select_option(index=1)
    token_typed.fill(" half a wor")
    view.get_by_role("button", name="Stop").click()
    notebook.wait_idle()
    view.get_by_text("stopped: what came so far is kept").wait_for()
    look(notebook, 1)
    assert page.locator(".insitu-generation_view").count() == 1  # its last line shows no second
    assert eventually(notebook, token_typed.input_value, " half a wor") == " half a wor"
    assert measure.evaluate("it => it.selectedIndex") == 1  # though the view was built anew
    assert eventually(notebook, lambda: told(notebook, "view.measure"), 1) == 1
    token_typed.fill("")
    count = int(notebook.python("print(len(view.branches[0].own))"))
    assert 6 <= count < 80
    tokens = view.locator(".lanes tbody tr").first.locator(".token")
    assert eventually(notebook, tokens.count, count) == count

    view.locator(".lanes .token").nth(2).click()
    likely = view.locator(".likely button:not(:disabled)").first
    token = likely.inner_text().replace("·", " ")
    likely.click()
    view.locator(".lanes tbody tr").nth(1).locator(".token.forced").wait_for()
    form = view.locator("form")
    form.locator("[name=edit]").fill("model.layers[2].resid_post[:, -1] *= 0")
    form.get_by_role("button", name="Fork at step 2").click()
    view.locator(".lanes tbody tr").nth(2).wait_for()
    stop = view.get_by_role("button", name="Stop")
    running = "[it.number for it in view.branches if it.state in ('waiting', 'running')]"

    def left():  # the forks are long, and may be stopped too
        stop.evaluate_all("buttons => buttons.forEach(button => button.click())")
        return told(notebook, running)

    assert eventually(notebook, left, []) == []
    branches = eval(output_of(notebook, 2))
    assert branches[0] == ("slowly", 0, None, "stopped", count)
    assert {branches[1][0], branches[2][0]} == {
        repr(token),
        "model.layers[2].resid_post[:, -1] *= 0",
    }
    assert [branch[1:3] for branch in branches[1:]] == [(2, 0), (2, 0)]

    view.locator(".lanes").focus()
    page.keyboard.press("ArrowRight")
    assert notebook.said == []
    assert lab.outside == []


DYING = (
    "import os, signal\n"
    "def dies(model):\n"
    "    if next(steps) == 12:\n"
    "        while not pathlib.Path('go').exists(): time.sleep(0.02)\n"
    "        os.kill(os.getpid(), signal.SIGKILL)\n"
    "    model.layers[0].resid_post[:] += 0\n"
    "view = watch_generation(model, 'Once', max_new_tokens=60, edit=dies)"
)


def test_a_kernel_that_dies_mid_stream_leaves_what_came_and_says_so(lab):
    notebook = open_cells(lab, HELD)
    page = notebook.page
    write(notebook, 1, DYING)
    begin(notebook, 1)
    view = page.locator(".insitu-generation_view")
    view.locator(".lanes .token").nth(11).wait_for()
    view.locator("[name=edit]").fill("model.layers[2]")
    assert "generating" in view.inner_text()
    came = view.locator(".lanes .token").all_inner_texts()

    (lab.root / "go").touch()
    page.locator(".jp-Dialog button").first.click()  # JupyterLab's own word about it
    view.locator(".trouble", has_text="The kernel does not answer").wait_for()
    assert view.count() == 1
    assert view.locator(".lanes .token").all_inner_texts() == came
    assert len(came) == 12

    view.locator(".lanes .token").nth(3).click()  # what came can still be looked at
    assert view.get_by_role("heading", name="Step 3").first.inner_text().startswith("Step 3")
    assert view.locator("[name=edit]").input_value() == "model.layers[2]"
    view.get_by_text("cut off: what came so far is kept").wait_for()
    assert "generating" not in view.inner_text()
    assert view.get_by_role("button", name="Stop").count() == 0
    view.get_by_role("button", name="Fork at step 3").click()
    view.get_by_text("The fork could not be asked for: the kernel is gone.").wait_for()
    page.wait_for_timeout(500)
    reviewed(notebook, 1, "generation_view_dead", is_alive=False)
    assert notebook.said == []
    assert lab.outside == []


FORKED = [
    "%load_ext insitu\nimport insitu\nmodel, seen = insitu.LanguageModel('demo'), []",
    "%%trace model 'The Eiffel Tower is in the city of' --generate 8 --view generation\n"
    "for step in tracer.iter[:]:\n"
    "    seen.append(step)\n"
    "    model.layers[1].resid_post[:, -1] *= 1.2",
    "pass",
]


def test_a_cells_generation_forks_with_what_the_cell_wrote(lab):
    notebook = open_cells(lab, FORKED)
    view = notebook.cell(1).locator(".insitu-generation_view")
    view.locator(".lanes .token").nth(7).wait_for()
    view.locator(".lanes .token").nth(2).click()
    view.locator(".likely button:not(:disabled)").first.click()
    view.locator(".lanes tbody tr").nth(1).locator(".token.forced").wait_for()
    states = "[branch['state'] for branch in model_view.lanes]"
    notebook.python(
        "import gc\nfrom insitu.widgets import GenerationView\n"
        "model_view = next(it for it in gc.get_objects() if isinstance(it, GenerationView))"
    )
    assert eventually(notebook, lambda: told(notebook, states), ["done", "done"]) == ["done"] * 2
    same = "[[it.id for it in model_view.fork(3, model_view.branches[0].own[3].id).own], "
    same += "[it.id for it in model_view.branches[0].own[3:]]]"
    again, main = told(notebook, same)
    assert again == main
    assert told(notebook, "seen") == list(range(8))
    assert view.get_by_text("No forks").count() == 0
    view.locator(".lanes tbody tr").nth(2).locator(".token").nth(4).wait_for()
    view.locator(".lanes tbody tr").first.locator(".token").nth(5).click()
    view.get_by_role("heading", name="Step 5").first.wait_for()
    reviewed(notebook, 1, "generation_view")
    assert notebook.said == lab.outside == []
