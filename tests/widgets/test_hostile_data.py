"""Every view with data that no one would choose: empty, no numbers, huge, hostile."""

import gc
import json
import math

import pytest
import torch
from asking import ask, numbers_of, value_of
from every_widget import WIDGETS

import insitu
from insitu.methods.axes import Axis
from insitu.methods.result import Result
from insitu.twins.ledger import Ledger
from insitu.widgets import (
    AttentionView,
    CacheInspector,
    DenoisingView,
    GenerationView,
    JobDock,
    JobEvent,
    LensGrid,
    PatchMap,
    RemoteLog,
    RunLedger,
    tensors,
)
from insitu.widgets.lint_fixes import LintFixes

MILLION = 1_000_000
HOSTILE = ["<script>alert(1)</script>", "\x00\x1b[31m", "‮‏", "漢字 ", "\ud800", "", "&amp;", "é"]


def sent(widget):
    """What reaches the page when a view is displayed: state, buffers and twins, in bytes."""
    state = widget.get_state()
    buffers = []

    def aside(part):
        buffers.append(len(bytes(part)))

    text = json.dumps(state, default=aside, allow_nan=False)
    data, _ = widget._repr_mimebundle_()
    return len(text) - len(str(widget._esm)) + sum(buffers) + len(json.dumps(data))


def checked(widget):
    """The widget can be shown: its state is JSON, its twins are text without a script."""
    data, _ = widget._repr_mimebundle_()
    json.dumps(widget.get_state(), default=lambda part: len(bytes(part)), allow_nan=False)
    assert "<script" not in data["text/html"]
    assert "\x00" not in data["text/html"]
    assert "\x1b" not in data["text/plain"]
    assert "\x1b" not in data["text/html"]
    data["text/html"].encode()
    data["text/plain"].encode()
    return widget


def grid(values, **further):
    values = torch.as_tensor(values)
    axes = Axis("layer", range(values.shape[0])), Axis("pos", range(values.shape[1]))
    return Result(values, axes, "share", **further)


def ran(layer, places):
    return torch.ones(len(places))


# A million tokens ---------------------------------------------------------------------------------


def a_million_steps():
    return GenerationView.of(["a"] * MILLION, entropy=[0.5] * MILLION, prompt=["b"] * MILLION)


def a_long_run():
    ledger = Ledger()
    ledger.add("x = 1\n" * 1000, prompt="a" * MILLION, edits=("e",) * 1000, top=((" x", 0.5),))
    return RunLedger(ledger)


def a_long_log():
    log = RemoteLog()
    log.feed(*(JobEvent("a", text="x" * 10) for _ in range(MILLION // 10)))
    return log


WIDE = {
    "lens_grid": lambda: LensGrid.of(torch.rand(2, MILLION), tokens=["a"] * MILLION),
    "attention_view": lambda: AttentionView(
        Result(torch.rand(1, 2, MILLION), tuple(
            Axis(name, range(n))
            for name, n in (("head", 1), ("query_pos", 2), ("key_pos", MILLION))
        ), "attention weight")
    ),
    "patch_map": lambda: PatchMap(grid(torch.rand(2, MILLION)), ran),
    "generation_view": a_million_steps,
    "denoising_view": lambda: DenoisingView("x", "a" * MILLION, ["a"] * MILLION),
    "cache_inspector": lambda: CacheInspector({f"t{n}": torch.zeros(1) for n in range(100_000)}),
    "one_large_tensor": lambda: CacheInspector(torch.rand(1, MILLION, 4)),
    "run_ledger": a_long_run,
    "remote_log": a_long_log,
    "job_dock": JobDock,
    "lint_fixes": lambda: LintFixes([], "x = 1\n" * 1000),
}  # fmt: skip


@pytest.mark.parametrize("name", WIDE)
def test_a_million_tokens_reach_a_view_in_a_bounded_message(name):
    widget = WIDE[name]()
    assert sent(widget) < 2_000_000
    widget.close()


def test_of_a_wide_lens_the_last_tokens_are_shown_and_the_selection_counts_all():
    values = torch.rand(2, MILLION)
    view = LensGrid.of(values, tokens=[str(n) for n in range(MILLION)])
    assert view.columns[-1] == str(MILLION - 1)
    assert view.first == [0, MILLION - len(view.columns)]
    assert view.note == f"the last {len(view.columns):,} of 1,000,000 columns"
    shown = torch.frombuffer(bytearray(view.values[0]), dtype=torch.float32)
    assert torch.equal(shown.view(2, -1), values[:, -len(view.columns) :])


def test_what_a_token_among_a_million_reads_is_told_of_those_that_are_named():
    view = WIDE["attention_view"]()
    about, (row,) = numbers_of(view, "query", layer=0, head=0, query=1)
    assert row.numel() == len(view.key_tokens) <= 2000
    assert view.size == [2, MILLION]
    about, (tile,) = numbers_of(view, "tile", layer=0, head=0, rows=[0, 2], columns=[0, MILLION])
    assert about["shape"] == [2, 240]
    assert tile.max() == view._values.max()


def test_a_million_rows_come_in_windows():
    view = WIDE["cache_inspector"]()
    window = value_of(view, "rows", first=99_990, end=100_060)
    assert window["total"] == 100_000
    assert len(window["rows"]) == 10
    asked = value_of(view, "rows", first=0, end=100_000)  # a view that asks for all gets some
    assert len(asked["rows"]) <= 1000


# Numbers that are none ----------------------------------------------------------------------------

NAN, INF = math.nan, math.inf
ODD = {
    "nan": torch.full((2, 3), NAN),
    "inf": torch.tensor([[INF, -INF, 1.0], [NAN, 0.0, -0.0]]),
    "huge": torch.full((2, 3), 3.4e38),
    "bool": torch.tensor([[True, False, True]] * 2),
    "complex": torch.tensor([[1j, 2.0, NAN]] * 2),
    "bfloat16": torch.ones(2, 3, dtype=torch.bfloat16),
    "int": torch.full((2, 3), 2**62),
    "float64": torch.full((2, 3), 1e300, dtype=torch.float64),
    "uint8": torch.ones(2, 3, dtype=torch.uint8),
    "float8": torch.ones(2, 3).to(torch.float8_e4m3fn),
    "strided": torch.rand(3, 2).T,
    "grad": torch.rand(2, 3, requires_grad=True),
}
SHAPES = {
    "no axes": torch.tensor(NAN),
    "nothing": torch.zeros(0),
    "no rows": torch.zeros(0, 3),
    "no columns": torch.zeros(3, 0),
    "none in the middle": torch.zeros(2, 0, 3),
    "sparse": torch.eye(3).to_sparse(),
    "meta": torch.zeros(2, 3, device="meta"),
}


@pytest.mark.parametrize("name", ODD)
def test_any_kind_of_number_is_shown_by_every_view_of_numbers(name):
    values = ODD[name]
    checked(LensGrid(grid(values, limits=None)))
    checked(AttentionView.of(values.expand(2, 2, 3)[..., :2], tokens="ab"))
    checked(DenoisingView.of([values]))
    view = checked(GenerationView.of("ab", values))
    value_of(view, "steps", branch=0)
    patches = checked(PatchMap(grid(values), lambda layer, places: values[0][places]))
    value_of(patches, "run", layers=[0, 1], places=[0, 1, 2])
    assert patches.state == {}
    checked(patches)


@pytest.mark.parametrize("name", ODD | SHAPES)
def test_any_tensor_is_inspected(name):
    tensor = (ODD | SHAPES)[name]
    view = checked(CacheInspector({"x": tensor}, {"x": tensor}))
    assert value_of(view, "rows", first=0, end=9)["total"] == 1
    ask(view, "hunt", start=0)
    content, _ = ask(view, "numbers", which=[0])
    picture, buffers = ask(view, "picture", which=0)
    assert set(content["value"]["0"]) >= {"nan", "inf", "mean"}
    if name == "meta":
        assert picture["trouble"]["what"] == "this tensor has no numbers to show."
        return
    rows, columns = picture["value"]["picture"]
    assert len(buffers[0]) == 4 * rows * columns


def test_the_mean_of_huge_numbers_is_a_number():
    found = tensors.statistics(ODD["huge"])
    assert found["mean"] == pytest.approx(3.4e38)
    assert found["std"] == pytest.approx(0, abs=1e32)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_a_grid_of_nothing_is_shown(shape):
    values = torch.zeros(shape)
    checked(LensGrid(grid(values)))
    checked(PatchMap(grid(values), ran))
    checked(AttentionView.of(torch.zeros(shape[0], 0, 0), tokens=[]))
    checked(GenerationView.of(["a"] * shape[0], values))


def test_an_empty_cache_is_shown(llm):
    with llm.trace("Once upon a time") as tracer:
        cache = tracer.cache([llm.lm_head])
        llm.transformer.h[0].output
        tracer.stop()
    for given in (cache, {}, []):
        view = checked(CacheInspector(given))
        assert value_of(view, "rows", first=0, end=60) == {"total": 0, "rows": []}
        assert value_of(view, "hunt", start=0) == {"found": None, "next": None}


def test_numbers_of_a_job_that_are_none_are_left_out():
    log = RemoteLog()
    log.feed(JobEvent("a", "progress", "p", done=NAN, of=INF), JobEvent("a", "queue", done=INF))
    log.feed(JobEvent("a", text="x", time=NAN))
    log._tell()
    checked(log)
    value_of(log, "tail")


def test_numbers_of_a_run_that_are_none_are_left_out():
    ledger = Ledger()
    for moved in (NAN, INF):
        ledger.add("x", moved=moved, run_s=0.1, top=((" a", NAN),), bare_top=((" b", NAN),))
    view = checked(RunLedger(ledger))
    value_of(view, "about", number=1)
    value_of(view, "compare", first=1, second=2)


# Text ---------------------------------------------------------------------------------------------


def hostile_views():
    count = len(HOSTILE)
    yield LensGrid.of(torch.rand(2, count), tokens=HOSTILE, texts=HOSTILE * 2)
    yield AttentionView.of(torch.rand(1, count, count), tokens=HOSTILE)
    yield GenerationView.of(
        HOSTILE, prompt=HOSTILE, top=[[(it, 0.5)] for it in HOSTILE], texts=[[it] for it in HOSTILE]
    )
    yield DenoisingView("".join(HOSTILE), "".join(HOSTILE), HOSTILE)
    yield CacheInspector({it: torch.rand(2) for it in HOSTILE})
    ledger = Ledger()
    for it in HOSTILE:
        ledger.add(it, prompt=it, model=it, edits=(it,), top=((it, 0.5),))
    yield RunLedger(ledger)
    log = RemoteLog(title=HOSTILE[0])
    log.feed(*(JobEvent("a", text=it, tags=(it,)) for it in HOSTILE))
    log.feed(JobEvent("a", "status", HOSTILE[0], "".join(HOSTILE)))
    yield log
    texts = {name: "".join(HOSTILE) for name in ("rule", "what", "why", "next", "fixed")}
    yield LintFixes([{**texts, "line": 1, "change": [["+", "".join(HOSTILE)]]}], HOSTILE[0])


def test_tokens_are_data_whatever_they_hold():
    for view in hostile_views():
        checked(view)


# What is gone -------------------------------------------------------------------------------------


def test_views_of_a_deleted_model_say_so_in_their_answers(tiny_gpt2):
    module, tokenizer = tiny_gpt2
    model = insitu.LanguageModel(module, tokenizer=tokenizer)
    tree, browser = model.tree(), insitu.show(model.transformer.h[0].attn.source)
    del model
    gc.collect()
    for view, name, given in ((tree, "about", {"row": 0}), (browser, "into", {"trail": []})):
        assert "is gone" in ask(view, name, **given)[0]["trouble"]["what"]
        checked(view)


@pytest.mark.parametrize("name", WIDGETS)
@pytest.mark.parametrize("given", [{}, {"which": 99, "row": -5, "first": "x", "number": None}])
def test_a_question_that_makes_no_sense_is_answered(name, given):
    view = WIDGETS[name]()
    asked = [it.removeprefix("answer_") for it in dir(view) if it.startswith("answer_")]
    for one in asked:
        content, _ = ask(view, one, **given)
        assert "trouble" not in content or content["trouble"]["what"]
    for content in (None, 3, {}, {"ask": 1}, {"name": "x"}, {"ask": 2, "name": "text"}):
        view._heard(view, content, [])
    checked(view)
    view.close()
