"""What a tree of modules shows of the passes of its model, while it is open."""

import gc
import threading
import time
import weakref

import pytest
import torch
from asking import rows_of
from torch import nn

from insitu import NNsight, UsageError
from insitu.widgets import ModuleTree


@pytest.fixture
def trees():
    opened = []

    def of(model):
        opened.append(ModuleTree(model))
        return opened[-1]

    yield of
    for tree in opened:
        tree.close()
    deadline = time.monotonic() + 5
    while any(t.name == "insitu-news" for t in threading.enumerate()):
        assert time.monotonic() < deadline, "a thread of news is left"
        time.sleep(0.02)


def marked(tree):
    """The paths that have each mark, once the news is out."""
    tree._news.now()
    module = tree._node()._module
    paths = [name for name, _ in module.named_modules()]
    return {
        name: {
            path
            for first, last in zip(rows[::2], rows[1::2], strict=True)
            for path in paths[first : last + 1]
        }
        for name, rows in tree.marks.items()
    }


def test_marks_are_stretches_of_rows_and_hold_until_the_next_run(llm, trees):
    tree = trees(llm)
    rows = list(llm._module.modules())
    wte = rows.index(llm._module.transformer.wte)
    tree.mark(read=[llm.transformer.wte, llm.transformer.wpe], written=[llm.transformer.wte])
    assert tree.marks == {"read": [wte, wte + 1], "written": [wte, wte]}
    with llm.trace("Once upon a time"):
        llm.lm_head.output
    assert marked(tree)["read"] == {"lm_head"}


def test_a_trace_marks_what_ran_was_read_and_was_written(llm, trees):
    tree = trees(llm)
    for _ in range(2):  # the pass that learns the order of modules, and one that knows it
        with llm.trace("Once upon a time"):
            llm.transformer.h[0].input
            llm.transformer.h[1].mlp.output[:, -1] = 0
            llm.transformer.h[2].output = llm.transformer.h[2].output * 2
            llm.transformer.h[3].attn.output
        marks = marked(tree)
        assert marks["read"] == {
            *("transformer.h.0", "transformer.h.1.mlp"),
            *("transformer.h.2", "transformer.h.3.attn"),
        }
        assert marks["written"] == {"transformer.h.1.mlp", "transformer.h.2"}
        assert {"", "lm_head", "transformer.h.0.attn.c_attn"} <= marks["ran"]
        assert "paused" not in marks


def test_shapes_are_shown_after_the_first_pass(llm, trees):
    tree = trees(llm)
    assert rows_of(tree)["outputs"] == [""]
    with llm.trace("Once upon a time"):
        llm.lm_head.output
    marked(tree)
    nodes = rows_of(tree)
    row = nodes["name"].index("lm_head")
    assert nodes["outputs"][nodes["output"][row]].startswith("float32[1, ")


def test_modules_that_are_added_before_the_first_pass_are_shown_and_marked(trees):
    model = NNsight(nn.Sequential(nn.Linear(2, 2)))
    tree = trees(model)
    model._module.insert(0, nn.ReLU())
    with model.trace(torch.rand(1, 2)):
        pass
    assert rows_of(tree)["name"] == ["", "0", "1"]
    assert marked(tree) == {"ran": {"", "0", "1"}}


def test_names_of_any_kind_are_one_row_each(trees):
    net = nn.Module()
    net._modules |= {"a\nb": nn.ReLU(), "c.d": nn.ReLU(), "": nn.ReLU()}
    assert rows_of(trees(NNsight(net)))["name"] == ["", "a␤b", "c.d", ""]


def test_a_stopped_pass_marks_only_as_far_as_it_came(net, x, trees):
    model = NNsight(net)
    tree = trees(model)
    for _ in range(2):
        with model.trace(x) as tracer:
            model.layer1.output[:] = 0
            tracer.stop()
        assert marked(tree) == {"ran": {"", "layer1"}, "read": {"layer1"}, "written": {"layer1"}}
        with model.trace(x):
            pass
        assert marked(tree) == {"ran": {"", "layer1", "layer2"}}


def test_a_pass_that_fails_marks_as_far_as_it_came(net, x, trees):
    model = NNsight(net)
    with model.trace(x):
        model.layer1.output
    tree = trees(model)
    with pytest.raises(ZeroDivisionError), model.trace(x):
        model.layer1.output
        raise ZeroDivisionError
    assert marked(tree) == {"ran": {"", "layer1"}, "read": {"layer1"}}


def test_nothing_inside_a_skipped_module_is_marked(trees):
    model = NNsight(nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU())))
    tree = trees(model)
    with model.trace(torch.rand(1, 2)):
        model[1].skip(model[0].output)  # what skips learns no order: only what was read is known
    assert marked(tree) == {"ran": {"0"}, "read": {"0"}, "written": {"1"}}
    with model.trace(torch.rand(1, 2)):
        model[1][1].output
    with model.trace(torch.rand(1, 2)):
        model[1].skip(model[0].output)
    assert marked(tree) == {"ran": {"", "0"}, "read": {"0"}, "written": {"1"}}


def test_each_step_of_a_generation_marks(llm, trees):
    tree = trees(llm)
    seen = []
    with llm.generate("Once upon", max_new_tokens=3) as tracer:
        for step in tracer.iter[:]:
            llm.transformer.h[step].output[:] += 1
            seen.append(marked(tree)["read"])
    assert seen[1] == {"transformer.h.0", "transformer.h.1"}
    assert marked(tree)["written"] == {f"transformer.h.{k}" for k in range(3)}
    assert "lm_head" in marked(tree)["ran"]


def test_what_invokes_read_and_write_is_marked(llm, trees):
    tree = trees(llm)
    with llm.trace() as tracer:
        with tracer.invoke("Once upon a time"):
            h = llm.transformer.h[1].output
        with tracer.invoke("The city of Rome"):
            llm.transformer.h[2].output[:] = h
    marks = marked(tree)
    assert marks["read"] == {"transformer.h.1", "transformer.h.2"}
    assert marks["written"] == {"transformer.h.2"}


def test_an_operation_marks_the_module_it_is_in(llm, trees):
    tree = trees(llm)
    with llm.trace("Once upon a time"):
        llm.transformer.h[1].mlp.source.self_act_0.output[:] = 0
    marks = marked(tree)
    assert marks["read"] == marks["written"] == {"transformer.h.1.mlp"}


def test_a_pass_held_open_is_marked_where_it_stands(llm, trees):
    tree = trees(llm)
    run = llm.open("Once upon a time")
    assert marked(tree) == {}
    run.until(llm.transformer.h[1])
    marks = marked(tree)
    assert marks["paused"] == {"transformer.h.1"}
    assert "transformer.h.1.mlp" in marks["ran"]
    assert "transformer.h.2.mlp" not in marks["ran"]
    run.step()
    assert marked(tree)["paused"] == {"transformer.h.2.ln_1"}
    run.finish()
    assert "paused" not in marked(tree)
    assert "lm_head" in marked(tree)["ran"]


def test_a_trace_beside_a_pass_held_open_leaves_its_marks(net, x, trees):
    model = NNsight(net)
    tree = trees(model)
    run = model.open(x).until(model.layer1)
    with model.trace(x):
        model.layer2.output
    assert marked(tree)["paused"] == {"layer1"}
    assert marked(tree)["read"] == {"layer1", "layer2"}
    run.close()


def test_a_scan_marks_nothing(net, x, trees):
    model = NNsight(net)
    tree = trees(model)
    with model.scan(x):
        model.layer1.output
    assert marked(tree) == {}


def test_a_closed_tree_stops_following(net, x):
    model = NNsight(net)
    tree = ModuleTree(model)
    assert model._onlookers is not None
    tree.close()
    assert model._onlookers is None


def test_a_tree_that_no_view_shows_any_more_follows_nothing(net, x, trees):
    model = NNsight(net)
    tree = trees(model)
    tree.answer_watched({"view": "a", "open": True})
    tree.answer_watched({"view": "b", "open": True})
    tree.answer_watched({"view": "a", "open": False})
    assert model._onlookers is not None
    tree.answer_watched({"view": "b", "open": False})
    assert model._onlookers is None
    tree.answer_watched({"view": "c", "open": True})
    with model.trace(x):
        model.layer1.output
    assert marked(tree)["read"] == {"layer1"}


def test_a_tree_keeps_no_module_alive(trees):
    net = nn.Sequential(nn.Linear(2, 2))
    model, gone = NNsight(net), weakref.ref(net[0])
    tree = trees(model)
    with model.trace(torch.rand(1, 2)):
        model[0].output
    tree._news.now()
    del model, net
    gc.collect()
    assert gone() is None
    assert len(rows_of(tree)["name"]) == 2


def test_many_passes_are_told_in_few_messages(net, x, trees):
    model = NNsight(net)
    tree = trees(model)
    told = []
    tree.observe(lambda change: told.append(change["new"]), "marks")
    began = time.monotonic()
    while time.monotonic() - began < 0.5:
        with model.trace(x):
            model.layer1.output
        with model.trace(x):
            model.layer2.output
    assert len(told) <= 7
    deadline = time.monotonic() + 5
    while tree.marks.get("read") != [2, 2]:  # the last news comes too
        assert time.monotonic() < deadline
        time.sleep(0.02)


# What can be reached ------------------------------------------------------------------------------


class Offloaded:
    """Stands where accelerate puts the hook of weights that are brought in for each call."""

    offload = True


def reached(tree):
    """The paths of each kind."""
    module = tree._node()._module
    paths = [name for name, _ in module.named_modules()]
    return {
        kind["label"]: [
            path
            for first, last in zip(kind["rows"][::2], kind["rows"][1::2], strict=True)
            for path in paths[first : last + 1]
        ]
        for kind in tree.reach.get("kinds", [])
    }


def mixed():
    """A module of every kind."""
    made = {"__name__": "made"}
    exec("def forward(self, x):\n    return x", made)
    textless = type("Textless", (nn.Module,), {"forward": made["forward"]})()
    meta = nn.Linear(2, 2, device="meta")
    offloaded = nn.Linear(2, 2)
    offloaded._hf_hook = Offloaded()
    compiled = nn.Linear(2, 2)
    compiled.compile(backend="eager")
    inside = nn.Linear(2, 2)
    inside.forward = torch.compile(inside.forward, backend="eager")
    copies = nn.DataParallel(nn.Sequential(nn.ReLU()))
    copies.device_ids = [0, 1]
    parts = {
        "copies": copies, "held": nn.ModuleList([nn.ReLU()]), "textless": textless, "meta": meta,
        "offloaded": offloaded, "compiled": compiled, "inside": inside, "plain": nn.Linear(2, 2),
    }  # fmt: skip
    return nn.Sequential(torch.nn.modules.container.OrderedDict(parts))


def test_the_overlay_says_which_modules_are_not_open_to_a_block_in_all_ways(trees):
    net = mixed()
    model = NNsight(net)
    tree = trees(model)
    assert (tree.overlay, tree.reach) == (False, {})
    tree.overlay = True
    assert reached(tree) == {
        "out of reach": ["copies.module", "copies.module.0"],
        "own values alone": ["copies"],
        "never called": ["held"],
        "no operations": ["textless"],
        "compiled": ["compiled", "inside"],
        "not loaded": ["meta"],
        "offloaded": ["offloaded"],
    }
    assert tree.reach["backend"] == "float32 on cpu, float32 not loaded"
    tree.overlay = False
    assert tree.reach == {}


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_what_the_overlay_says_is_what_a_block_meets(x, trees):
    scripted = torch.jit.script(nn.Sequential(nn.Linear(5, 5)))
    net = nn.Sequential(scripted, nn.Linear(5, 5))
    model = NNsight(net)
    tree = trees(model)
    tree.overlay = True
    assert reached(tree) == {"out of reach": ["0.0"], "own values alone": ["0"]}
    with model.trace(x):
        model[0].output[:] = 0
        own = model[1].input.clone()
    assert not own.any()
    with pytest.raises(UsageError, match="cannot be reached"), model.trace(x):
        model[0][0].output


def test_fused_attention_is_told_where_it_is_used(llm, trees):
    tree = trees(llm)
    tree.overlay = True
    attention = [f"transformer.h.{layer}.attn" for layer in range(4)]
    assert reached(tree)["fused attention"] == attention
    assert tree.reach["backend"] == "float32 on cpu, sdpa attention"
    part = trees(llm.transformer.h[1])
    part.overlay = True
    assert reached(part) == {"fused attention": ["attn"]}


def test_the_overlay_follows_what_a_model_becomes(trees):
    model = NNsight(nn.Sequential(nn.Linear(2, 2)))
    tree = trees(model)
    tree.overlay = True
    assert reached(tree) == {}
    model._module.append(nn.ModuleList())
    model._module.insert(0, nn.Linear(2, 2))
    model._module.pop(2)
    model._module[0].compile(backend="eager")
    with model.trace(torch.rand(1, 2)):
        model[1].output
    marked(tree)
    assert reached(tree) == {"compiled": ["0"]}


def test_the_twins_tell_the_overlay_while_it_is_on(trees):
    net = mixed()
    model = NNsight(net)
    tree = trees(model)
    before = tree.text(), tree.html()
    assert "What a block can reach" not in "".join(before)
    tree.overlay = True
    text, html = tree.text(), tree.html()
    assert text.startswith(before[0])
    assert html.startswith(before[1])
    assert "  compiled, 2 modules: compiled, inside\n" in text
    assert "  3 of 12 modules: input, output, operations and all that is in them" in text
    assert '<th scope="row">compiled</th><td>2 modules</td>' in html
    assert "<script" not in html


def test_an_overlay_of_a_model_that_is_gone_is_empty(trees):
    tree = trees(NNsight(nn.Sequential(nn.ReLU())))
    gc.collect()
    tree.overlay = True
    assert tree.reach == {}


def test_ten_thousand_modules_are_looked_at_in_a_moment(trees):
    model = NNsight(nn.ModuleList([nn.Linear(1, 1) for _ in range(10_000)]))
    tree = trees(model)
    began = time.monotonic()
    tree.overlay = True
    assert time.monotonic() - began < 1.5
    assert reached(tree) == {"never called": [""]}
