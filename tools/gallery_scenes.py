"""What the pictures of docs/widgets.md show: views of the demo models, and where they are clicked.

widget, act = prepared("lens_grid")

A scene is a function that gives a view, and maybe what is done in its page before the picture.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

import insitu
from insitu import LanguageModel
from insitu.methods import attention_patterns, logit_lens
from insitu.methods.metrics import logit_difference
from insitu.twins.ledger import Ledger
from insitu.widgets import (
    JobDock,
    JobEvent,
    RemoteLog,
    RunLedger,
    patch_map,
    watch_denoising,
    watch_generation,
)
from insitu.widgets.lint_fixes import LintFixes

Act = Callable[[Any], None]

FACT = "The Eiffel Tower is in the city of"
OTHER_FACT = "The Brandenburg Gate is in the city of"
TWICE = " garden drink book king store Paris garden drink book king store Paris"
INDUCTION = {"layer": 2, "head": 1, "token": 9}
GIVING = "When Mary and John went to the store, John gave a drink to"
GIVING_OTHER = "When Mary and John went to the store, Mary gave a drink to"
BEFORE_S = 26
"""So long ago jobs began."""


def nothing(page: Any) -> None:
    """Done in a page that is shown as it opens."""


def module_tree() -> tuple[Any, Act]:
    """After a pass that read one block and wrote another."""
    model = LanguageModel("demo")
    view = model.tree()
    with model.trace(FACT):
        model.transformer.h[1].mlp.c_fc.output.clone()
        model.transformer.h[1].mlp.output[:, -1] *= 2
    time.sleep(0.3)  # its marks are gathered before they are told

    def act(page: Any) -> None:
        page.get_by_role("searchbox").fill("h.1")
        page.get_by_role("treeitem", name="c_fc").first.click()

    return _keeping(view, model), act


def source_browser() -> tuple[Any, Act]:
    """The forward of an attention layer, one operation clicked."""
    model = LanguageModel("demo")

    def act(page: Any) -> None:
        page.get_by_role("button", name="attention_interface_0").first.click()

    return _keeping(insitu.show(model.transformer.h[3].attn.source), model), act


def cache_inspector() -> tuple[Any, Act]:
    """Two prompts compared, one tensor open."""
    model = LanguageModel("demo")
    caches = []
    for prompt in (FACT, OTHER_FACT):
        with model.trace(prompt) as tracer:
            caches.append(tracer.cache())

    def act(page: Any) -> None:
        page.get_by_role("option").nth(5).click()

    return caches[0].view(caches[1]), act


def attention_view() -> tuple[Any, Act]:
    """Words said twice: the heads that look for what came after them the first time."""
    model = LanguageModel("demo")
    for name, value in INDUCTION.items():
        setattr(insitu.selection, name, value)
    return insitu.show(attention_patterns(model, TWICE)), nothing


def lens_grid() -> tuple[Any, Act]:
    """The answer as it forms, one cell clicked."""
    model = LanguageModel("demo")

    def act(page: Any) -> None:
        map_ = page.locator("canvas")
        box = map_.bounding_box()
        map_.click(position={"x": 0.93 * box["width"], "y": 0.58 * box["height"]})

    return insitu.show(logit_lens(model, FACT, target=" Paris")), act


def patch_map_view() -> tuple[Any, Act]:
    """Which positions tell who is given the drink; some cells run exactly."""
    model = LanguageModel("demo")
    metric = logit_difference(model, " Mary", " John")
    view = patch_map(model, GIVING, GIVING_OTHER, metric)
    view.run([0, 1, 2], [9, 10, 13])
    return view, nothing


def generation_view() -> tuple[Any, Act]:
    """A review, and what it would have been with another word."""
    model = LanguageModel("demo")
    view = watch_generation(model, "The movie was", max_new_tokens=9, top=5)
    view.fork(1, token=" ugly")
    insitu.selection.step = 4
    return view, nothing


def denoising_view() -> tuple[Any, Act]:
    """A picture out of noise, and where its words look."""
    model = insitu.DiffusionModel("demo")
    view = watch_denoising(model, "a red circle", num_inference_steps=8, seed=0)
    return view, nothing


def stepper() -> tuple[Any, Act]:
    """A pass that stands in the middle of the model."""
    model = LanguageModel("demo")
    run = model.open(FACT)
    view = run.view()
    view.to("transformer.h.2.mlp")
    view.edit("value[:, -1] = 0")
    return _keeping(view, model, run), nothing


def _events(job: str, began: float) -> list[JobEvent]:
    """What a job says that trains a probe."""
    told = [
        JobEvent(job, "status", phase=phase, time=began + 2 * number)
        for number, phase in enumerate(("RECEIVED", "APPROVED", "QUEUED"))
    ]
    told.append(JobEvent(job, "queue", done=2, of=5, time=began + 5))
    told.append(JobEvent(job, "status", phase="RUNNING", time=began + 9))
    for step in range(60):
        loss, at = 2.3 * 0.93**step, began + 10 + step / 4
        text = f"step {step:3}  loss {loss:.4f}  accuracy {1 - loss / 2.6:.3f}"
        told.append(JobEvent(job, text=text, tags=("train",), time=at))
        if step % 20 == 19:
            warning = f"learning rate halved at step {step}"
            told.append(JobEvent(job, text=warning, tags=("warning",), time=at + 0.1))
    told.append(JobEvent(job, "progress", "steps", done=60, of=200, time=began + 25))
    return told


def remote_log() -> tuple[Any, Act]:
    """A job that runs."""
    view = RemoteLog(title="train a probe of the city", cancel=lambda: None)
    view.feed(*_events("probe", time.time() - BEFORE_S))
    time.sleep(0.2)
    return view, nothing


def job_dock() -> tuple[Any, Act]:
    """Jobs in all their states."""
    dock = JobDock()
    began = time.time() - BEFORE_S
    dock.feed(*_events("probe of the city", began))
    dock.feed(
        JobEvent("lens for layer 3", "status", phase="RECEIVED", time=began),
        JobEvent("lens for layer 3", "status", phase="COMPLETED", time=began + 8),
        JobEvent("sweep of patches", "status", phase="RECEIVED", time=began + 12),
        JobEvent("sweep of patches", "status", phase="QUEUED", time=began + 14),
        JobEvent("sweep of patches", "queue", done=3, of=9, time=began + 15),
        JobEvent("logits of a corpus", "status", phase="RECEIVED", time=began),
        JobEvent("logits of a corpus", "status", phase="ERROR", text="out of memory on GPU 1",
                 time=began + 4),
    )  # fmt: skip
    time.sleep(0.2)
    return dock, nothing


RUNS = (
    ("model.transformer.h[3].attn.output[0][:] = 0", ("transformer.h.3.attn.output",), 0.02),
    ("model.transformer.h[2].output[0, -1] = stream", ("transformer.h.2.output",), 0.99),
    ("model.transformer.h[2].output[:, -1] *= 2\nlogits = model.lm_head.output",
     ("transformer.h.2.output",), 0.31),
)  # fmt: skip


def run_ledger() -> tuple[Any, Act]:
    """Three runs, two of them compared."""
    kept = Ledger()
    top = ((" Paris", 0.98), (" London", 0.01), (" Rome", 0.003))
    for number, (code, edits, moved) in enumerate(RUNS):
        after = ((" Rome", 0.97), (" Paris", 0.02), (" Milan", 0.002)) if moved > 0.9 else top
        kept.add(
            f'%%trace model "{FACT}"\n{code}', prompt=FACT, model="GPT2LMHeadModel", edits=edits,
            moved=moved, run_s=0.006 + number / 1000, bare_s=0.005, top=after, bare_top=top,
            at=f"2026-11-22T09:1{number}:00+00:00", seed=0,
        )  # fmt: skip
    view = RunLedger(kept)
    view.chosen = [1, 2]

    def act(page: Any) -> None:
        page.get_by_role("button", name="Compare").click()

    return _keeping(view, kept), act


CELL = """%%trace model "The Eiffel Tower is in the city of"
logits = model.lm_head.output
h = model.transformer.h[2].output
h = h * 2"""


def lint_fixes() -> tuple[Any, Act]:
    """Findings of a cell, as the linter has them."""
    from insitu.notebook.lint.check import findings
    from insitu.notebook.lint.shown import _item

    model = LanguageModel("demo")
    with model.trace(FACT):
        pass
    found = findings(CELL, {"model": model, "insitu": insitu})
    return LintFixes([_item(CELL, it) for it in found], CELL), nothing


SCENES: dict[str, Callable[[], tuple[Any, Act]]] = {
    "module_tree": module_tree,
    "source_browser": source_browser,
    "cache_inspector": cache_inspector,
    "attention_view": attention_view,
    "lens_grid": lens_grid,
    "patch_map": patch_map_view,
    "generation_view": generation_view,
    "denoising_view": denoising_view,
    "stepper": stepper,
    "remote_log": remote_log,
    "job_dock": job_dock,
    "run_ledger": run_ledger,
    "lint_fixes": lint_fixes,
}

_kept: list[Any] = []


def _keeping(view: Any, *others: Any) -> Any:
    """Views keep no model alive; the picture needs it."""
    _kept.extend(others)
    return view


def prepared(name: str) -> tuple[Any, Act]:
    """A view, and what is done in its page."""
    insitu.selection.clear()
    torch.manual_seed(0)
    _kept.clear()
    return SCENES[name]()
