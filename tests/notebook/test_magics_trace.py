"""What the options of `%%trace` add to a cell."""

import pytest
import torch
from leftovers import ours_on

from insitu import ActivationCache, GradientError, NNsight, UsageError
from insitu.notebook.magics.edited import indented
from insitu.widgets import AttentionView, CacheInspector, GenerationView, LensGrid, ModuleTree

PROMPT = "'The Eiffel Tower is in'"


def failed(cell, code, kind=UsageError):
    shown = cell(code)
    assert isinstance(shown.error, kind), shown.error
    assert len(str(shown.error).splitlines()) == 3
    return shown.error


def texts(shown):
    return [data["text/plain"] for data in shown.displayed]


# --cache -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sites", "count"),
    [
        ("transformer.h.*", 4),
        ("transformer.h.*,lm_head", 5),
        ("'transformer.h.0.mlp, lm_head'", 2),
        ("model.transformer.h[2]", 1),
        ("model.transformer.h[2],lm_head", 2),
    ],
)
def test_cache_keeps_what_modules_return(cell, sites, count):
    shown = cell(f"%%trace model {PROMPT} --cache {sites}\nlogits = model.lm_head.output")
    assert shown.error is None
    assert len(cell.names["cache"]) == count
    assert "ActivationCache of" in texts(shown)[-1]


def test_cache_of_all_keeps_all_and_what_was_written(cell):
    cell(f"%%trace model {PROMPT} --cache all\nmodel.transformer.h[1].output[:] = 0")
    cache = cell.names["cache"]
    assert isinstance(cache, ActivationCache)
    assert len(cache) > 40
    assert not cache["transformer.h.1"].output.any()


def test_cache_of_an_unknown_module_names_the_near_one(cell):
    failed(cell, f"%%trace model {PROMPT} --cache transformer.hh.*\nx = 1", Exception)


# --grad ------------------------------------------------------------------------------------------


def test_grad_gives_the_gradient_at_every_site_met(cell):
    shown = cell(
        f"%%trace model {PROMPT} --grad logits[0,-1].max()\n"
        "h = model.transformer.h[1].output\nlogits = model.lm_head.output"
    )
    assert shown.error is None
    model, grads = cell.names["model"], cell.names["grads"]
    kept = []
    handle = model._module.transformer.h[1].register_forward_hook(
        lambda m, a, out: kept.append(out.requires_grad_())
    )
    ids = model.tokenizer(PROMPT.strip("'"), return_tensors="pt")["input_ids"]
    model._module(ids).logits[0, -1].max().backward()
    handle.remove()
    torch.testing.assert_close(grads["transformer.h.1.output"], kept[0].grad)
    assert list(grads) == ["transformer.h.1.output", "lm_head.output"]
    assert "Gradients of logits[0,-1].max()" in texts(shown)[-1]
    assert not any(it.requires_grad for it in model._module.parameters())
    assert all(it.grad is None for it in model._module.parameters())


def test_grad_is_of_what_the_cell_wrote_and_works_where_gradients_are_off(cell):
    with torch.no_grad():
        shown = cell(
            f"%%trace model {PROMPT} --grad loss --quiet\n"
            "model.transformer.h[1].output[:] *= 2\n"
            "loss = (model.transformer.h[1].output ** 2).sum() / 2"
        )
    assert shown.error is None
    want = cell.names["model"]
    with want.trace(PROMPT.strip("'")):
        h = want.transformer.h[1].output * 2
    torch.testing.assert_close(cell.names["grads"]["transformer.h.1.output"], h)


@pytest.mark.parametrize(
    ("expression", "body", "what"),
    [
        ("h", "h = model.lm_head.output", "no single number"),
        ("3", "h = model.lm_head.output", "no single number"),
        ("torch.ones(())", "h = model.lm_head.output\nimport torch", "depends on nothing"),
    ],
)
def test_grad_of_what_has_none_says_why(cell, expression, body, what):
    error = failed(cell, f"%%trace model {PROMPT} --grad {expression}\n{body}", GradientError)
    assert what in error.what


# --scan, --invoke, --edit ------------------------------------------------------------------------


def test_scan_shows_shapes_and_computes_nothing(cell):
    shown = cell(
        f"%%trace model {PROMPT} --scan\nwidth = model.transformer.h[0].output.shape[-1]\n"
        "x = model.transformer.h[1].input"
    )
    assert shown.error is None
    assert cell.names["width"] == 32
    rows = texts(shown)[-1].splitlines()
    assert rows[0] == "GPT2LMHeadModel, shapes alone: nothing was computed"
    assert "transformer.h.1.input" in rows[-1]


def test_invoke_adds_prompts_to_the_same_pass(cell):
    shown = cell(
        "%%trace model 'The' --invoke 'The Eiffel Tower' --invoke prompt + ' is'\n"
        "logits = model.lm_head.output"
    )
    assert isinstance(shown.error, UsageError)  # `+` is a word of its own: brackets keep it whole
    cell.names["prompt"] = "Once"
    shown = cell(
        "%%trace model 'The' --invoke 'The Eiffel Tower' --invoke (prompt + ' is')\n"
        "logits = model.lm_head.output"
    )
    assert shown.error is None
    assert cell.names["logits"].shape[0] == 3
    assert "Once" in shown.text.replace(" ", "") or "On" in shown.text


def test_invoke_takes_tensors_of_a_plain_module(cell):
    cell.names.update(net=NNsight(torch.nn.Linear(2, 3)), x=torch.ones(1, 2))
    shown = cell("%%trace net x --invoke x*2\nout = net.output")
    assert shown.error is None
    net, x = cell.names["net"], cell.names["x"]
    torch.testing.assert_close(cell.names["out"], net._module(torch.cat([x, x * 2])))


def test_edit_keeps_the_cell_for_every_later_pass(cell):
    shown = cell(
        "%%trace model --edit edited\nnote = '''two\nlines'''\n"
        "model.transformer.h[1].output[:, -1] = 0\n"
    )
    assert shown.error is None
    assert shown.displayed == []
    model, edited = cell.names["model"], cell.names["edited"]
    text = PROMPT.strip("'")
    with model.trace(text):
        model.transformer.h[1].output[:, -1] = 0
        want = model.lm_head.output
    assert torch.equal(edited(text).logits, want)
    assert not torch.equal(model(text).logits, want)


def test_edit_with_a_prompt_runs_the_cell_first(cell):
    shown = cell(f"%%trace model {PROMPT} --edit edited\nmodel.transformer.h[1].output[:] *= 0\n")
    assert "edited in place" in shown.text
    assert len(cell.names["edited"].edits) == 1


@pytest.mark.parametrize(
    "body",
    ["x = 1\n", "x = '''a\n  b'''\n\nif x:\n    y = 2\n", "# alone\n", "", "z = f'''{1}\na'''\n"],
)
def test_a_body_is_moved_in_without_changing_its_texts(body):
    moved, plain = {}, {}
    exec(f"if True:\n{indented(body)}", moved)
    exec(body, plain)
    assert {k: moved[k] for k in plain if len(k) == 1} == {
        k: plain[k] for k in plain if len(k) == 1
    }


# --view ------------------------------------------------------------------------------------------


@pytest.fixture
def displayed(monkeypatch):
    """What cells display, as the objects they are."""
    from insitu.notebook import trace_magic

    found = []
    monkeypatch.setattr(trace_magic, "display", found.append)
    return found


@pytest.mark.parametrize(
    ("view", "kind", "more"),
    [
        ("lens", LensGrid, ""),
        ("attention", AttentionView, ""),
        ("tree", ModuleTree, ""),
        ("cache", CacheInspector, "--cache transformer.h.*"),
        ("generation", GenerationView, "--generate 3"),
    ],
)
def test_a_cell_ends_in_a_view(cell, displayed, view, kind, more):
    shown = cell(f"%%trace model {PROMPT} --quiet --view {view} {more}\nx = model.lm_head.output")
    assert shown.error is None
    (found,) = displayed
    assert isinstance(found, kind)


def test_a_lens_is_of_the_run_as_the_cell_changed_it(cell, displayed):
    cell(f"%%trace model {PROMPT} --quiet --view lens\nx = 1")
    cell(f"%%trace model {PROMPT} --view lens\nmodel.transformer.h[1].output[:] *= -1")
    plain, changed = displayed
    assert torch.equal(plain.result.values[0], changed.result.values[0])
    assert not torch.allclose(plain.result.values[1], changed.result.values[1])
    assert not any(map(ours_on, cell.names["model"]._module.modules()))


def test_a_tree_marks_what_was_read_and_written(cell, displayed):
    cell(
        f"%%trace model {PROMPT} --view tree\nmodel.transformer.h[1].output[:] *= -1\n"
        "x = model.lm_head.output"
    )
    (tree,) = displayed
    model = cell.names["model"]._module
    read, written = tree._rows[model.lm_head], tree._rows[model.transformer.h[1]]
    assert tree._by_hand == {"read": {read}, "written": {written}}


def test_a_generation_fills_with_what_the_cell_made_of_it(cell, displayed):
    shown = cell(
        f"%%trace model {PROMPT} --generate 4 --view generation\n"
        "for step in tracer.iter[:]:\n    if step == 1:\n"
        "        model.transformer.h[1].output[:] *= -3\n"
    )
    assert shown.error is None
    (view,) = displayed
    steps = view.branches[0].own
    ids = cell.names["tracer"].result[0, -4:].tolist()
    assert [step.id for step in steps] == ids
    assert all(len(step.texts) == 4 for step in steps)
    assert view.branches[0].state == "done"
    assert view.forks  # by running the cell again: see test_fork_again.py
    cell(f"%%trace model {PROMPT} --generate 2 --view generation --quiet\npass")
    assert displayed[-1].forks


def test_a_generation_that_is_stopped_shows_what_came(cell, displayed):
    shown = cell(
        f"%%trace model {PROMPT} --generate 9 --view generation --quiet\n"
        "for step in tracer.iter[:]:\n    if step == 3:\n        tracer.stop()\n"
    )
    assert shown.error is None
    assert displayed[-1].branches[0].state == "stopped"
    assert len(displayed[-1].branches[0].own) == 2


@pytest.mark.parametrize(
    ("line", "what", "next"),
    [
        ("model 'a' --view generation", "runs one forward", "--generate 20"),
        ("model 'a' --view lens --generate 2", "this cell generates", "--generate out"),
        ("model ['a', 'b'] --view lens", "several", "one of them"),
        ("model 'a' --view cache", "kept none", "--cache transformer.h.*"),
        ("net x --view attention", "needs a language model", "--view tree"),
        ("model 'a' --view lense", "--view knows no lense", "did you mean --view lens?"),
        ("model 'a' --view", "--view was given no view", "--view lens"),
        ("model 'a' --scan --time", "exclude each other", "leave one"),
        ("model 'a' --grad x --generate 2", "exclude each other", "leave one"),
        ("model 'a' --edit 3x", "name of a variable, not 3x", "--edit edited"),
        ("model 'a' --quiet=yes", "takes no value", "--quiet alone"),
        ("model 'a' --cache --time", "--cache was given no sites", "--cache transformer.h.*"),
        ("model 'a' max_new_tokens=5", "a setting of generate()", "write --generate 5"),
        ("model 'a' --invoke 3", "", ""),
    ],
)
def test_a_wrong_word_is_told_in_three_lines(cell, line, what, next):
    cell.names.update(net=NNsight(torch.nn.Linear(2, 2)), x=torch.ones(1, 2))
    error = failed(cell, f"%%trace {line}\nx = 1", Exception)
    assert what in error.what
    assert next in error.next


def test_loss_backward_works_in_the_cell(cell):
    shown = cell(
        f"%%trace model {PROMPT}\nh = model.transformer.h[1].output\nh.requires_grad_(True)\n"
        "loss = model.lm_head.output.sum()\nwith loss.backward():\n    grad = h.grad"
    )
    assert shown.error is None
    assert cell.names["grad"].shape == cell.names["h"].shape
    assert torch.Tensor.backward.__module__ == "torch._tensor"
