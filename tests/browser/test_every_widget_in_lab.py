"""Every widget in one notebook: its page is loaded again, its kernel dies, nothing is fetched.

A view is compared with itself by what it writes, what is chosen in it, and every dot of its maps.
"""

import json
from pathlib import Path

import pytest
from widget_pages import answered, assert_told, look, open_cells

pytestmark = pytest.mark.slow

BEGIN = f"""
%load_ext insitu
import sys, insitu, torch
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from insitu.methods import attention_patterns, logit_lens
from insitu.methods.metrics import logit_difference
from insitu.widgets import JobDock, LocalJob, RemoteLog, watch_denoising, watch_generation
model, prompt = insitu.LanguageModel("demo"), "The Eiffel Tower is in the city of"
with model.trace(prompt) as tracer:
    cache = tracer.cache()
def say(log):
    for n in range(40):
        log(f"line {{n}}", tags="odd" if n % 2 else "even")
job = LocalJob(say, title="forty lines")
"""
PATCHES = """
insitu.widgets.patch_map(model, "Mary and John went out, John spoke to",
                         "Mary and John went out, Mary spoke to",
                         logit_difference(model, " Mary", " John"))
"""
DENOISING = """
import tiny_diffusion
from insitu.models.diffusion import DiffusionModel
pipeline = DiffusionModel(tiny_diffusion.stable_diffusion())
watch_denoising(pipeline, "a red circle", num_inference_steps=3, seed=0)
"""
LINT = """%%trace model "The Eiffel Tower is in the city of"
h = model.transformer.h[1].output
h = h * 0
logits = model.lm_head.output"""
CELLS = {
    "begin": BEGIN,
    "module_tree": "model.tree()",
    "source_browser": "insitu.show(model.transformer.h[0].attn.source)",
    "cache_inspector": "cache.view()",
    "lens_grid": "insitu.show(logit_lens(model, prompt))",
    "attention_view": "insitu.show(attention_patterns(model, prompt))",
    "patch_map": PATCHES,
    "generation_view": "watch_generation(model, prompt, max_new_tokens=5)",
    "denoising_view": DENOISING,
    "stepper": "run = model.open(prompt)\nrun.until(model.transformer.h[2])\nrun.view()",
    "remote_log": "RemoteLog(job)",
    "job_dock": "JobDock(job)",
    "lint_fixes": LINT,
    "run_ledger": "insitu.widgets.RunLedger()",
}
WIDGETS = [name for name in CELLS if name != "begin"]

CHOICES = {
    "module_tree": "[role=treeitem] >> nth=3",
    "source_browser": ".names button >> nth=2",
    "cache_inspector": "[role=option] >> nth=4",
    "attention_view": ".heads button >> nth=2",
    "generation_view": ".lanes .token >> nth=2",
    "denoising_view": "[role=option] >> nth=1",
    "job_dock": "[role=option] >> nth=0",
    "run_ledger": "input[type=checkbox] >> nth=0",
}
"""What is clicked in a view before its page is loaded again."""


def place(name):
    """The cell that a widget is in."""
    return list(CELLS).index(name)


def view_of(notebook, name):
    """The view of a widget, which may have others within."""
    return notebook.cell(place(name)).locator(f".insitu-{name}")


@pytest.fixture(scope="module")
def opened(labs):
    """A page with every widget, each of them used."""
    lab = labs("every-widget")
    notebook = open_cells(lab, CELLS.values())
    for name, choice in CHOICES.items():
        view_of(notebook, name).locator(choice).first.click()
    assert_told(notebook, "[insitu.selection.head, insitu.selection.step]", [2, 1])
    notebook.python("insitu.selection.layer, insitu.selection.token = 2, 3")
    notebook.page.mouse.move(0, 0)
    yield lab, notebook
    lab.close()


@pytest.fixture(scope="module")
def reloaded(opened):
    """What every view showed before its page was loaded again; the page as it is now."""
    lab, notebook = opened
    before = {name: look(notebook, place(name)) for name in WIDGETS}
    said = list(notebook.said)
    notebook.command("docmanager:save")
    notebook = lab.reload()
    return lab, notebook, before, said


@pytest.fixture(scope="module")
def dead(reloaded):
    """The page after its kernel was killed."""
    lab, notebook, *_ = reloaded
    for name in WIDGETS:
        look(notebook, place(name))
    said = list(notebook.said)
    notebook.page.evaluate(
        "() => { window.jupyterapp.shell.currentWidget.sessionContext.session.kernel"
        ".requestExecute({ code: 'import os, signal; os.kill(os.getpid(), signal.SIGKILL)' }); }"
    )
    notebook.page.locator(".jp-Dialog button").first.click()  # JupyterLab's own word about it
    return lab, notebook, said


@pytest.mark.parametrize("name", WIDGETS)
def test_a_widget_opens_once_and_is_used(opened, name):
    _, notebook = opened
    view = view_of(notebook, name)
    view.first.wait_for()
    answered(notebook, view.first)
    assert view.count() == 1
    assert view.locator(".trouble").count() == 0


def test_nothing_was_wrong_while_widgets_were_used(reloaded):
    lab, _, _, said = reloaded
    assert said == []
    assert lab.outside == []


@pytest.mark.parametrize("name", WIDGETS)
def test_a_widget_stands_as_it_was_after_a_reload(reloaded, name):
    _, notebook, before, _ = reloaded
    now = look(notebook, place(name), before[name])
    text, chosen, maps = json.loads(before[name])
    assert json.loads(now)[0] == text
    assert json.loads(now)[1] == chosen
    assert json.loads(now)[2] == maps


def test_nothing_was_wrong_after_the_reload(dead):
    lab, _, said = dead
    assert said == []
    assert lab.outside == []


@pytest.mark.parametrize("name", WIDGETS)
def test_a_widget_says_that_its_kernel_died(dead, name):
    _, notebook, _ = dead
    view = view_of(notebook, name)
    view.locator(".trouble", has_text="The kernel does not answer").wait_for()
    if name in CHOICES:
        view.locator(CHOICES[name]).first.click()  # it may do nothing, and says nothing


def test_nothing_was_wrong_on_dead_views(dead):
    lab, notebook, _ = dead
    notebook.page.wait_for_timeout(500)
    assert [it for it in notebook.said if "blob:" in it or "uncaught" in it] == []
    assert notebook.said == []
    assert lab.outside == []


def test_a_request_to_another_machine_would_be_noticed(labs):
    lab = labs("outside")
    open_cells(lab, ["1 + 1"])
    fetched = "url => fetch(url).then(() => 'came', () => 'refused')"
    assert lab.page.evaluate(fetched, "https://elsewhere.invalid/x.js") == "refused"
    assert lab.outside == ["https://elsewhere.invalid/x.js"]
    lab.close()
