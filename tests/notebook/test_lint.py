"""Each mistake is found, at its line, and its repair makes the cell do what was meant."""

import time

import pytest
import torch

from insitu import NNsight
from insitu.notebook.lint.check import findings
from insitu.notebook.lint.finding import fixed

TRACE = "%%trace model 'The Eiffel Tower'\n"
GENERATE = "%%trace model 'The Eiffel Tower' --generate 3\n"
TWO = "%%trace model ['The', 'The Eiffel Tower is in']\n"


@pytest.fixture
def names(llm):
    """A notebook whose model has run."""
    with llm.trace("The Eiffel Tower"):
        pass
    with llm.generate("The Eiffel Tower", max_new_tokens=2):
        pass
    return {"model": llm, "torch": torch, "prompts": ["The", "The Eiffel Tower is in"]}


CASES = [
    # rule, cell, line, a line of the repaired cell
    (
        "rebound-site",
        TRACE + "h = model.transformer.h[1].output\nh = h * 2\nlogits = model.lm_head.output",
        3,
        "h[:] = h * 2",
    ),
    ("rebound-site", TRACE + "x = model.transformer.h[1].mlp.output\nx = 0", 3, "x[:] = 0"),
    (
        "rebound-site",
        "with model.trace('a b') as tracer:\n    h = model.transformer.h[1].output[:, -1]\n"
        "    h = torch.zeros_like(h)\n    out = model.lm_head.output",
        3,
        "    h[:] = torch.zeros_like(h)",
    ),
    (
        "rebound-site",
        "with model.edit() as edited:\n    h = model.transformer.h[1].output\n    h = h + v\n",
        3,
        "    h[:] = h + v",
    ),
    (
        "out-of-order",
        TRACE + "logits = model.lm_head.output\nh = model.transformer.h[1].output  # late",
        3,
        "h = model.transformer.h[1].output  # late",
    ),
    (
        "out-of-order",
        TRACE + "a = model.transformer.h[1].output\nb = model.transformer.h[1].input",
        3,
        "b = model.transformer.h[1].input",
    ),
    (
        "out-of-order",
        TRACE + "block = model.transformer.h[1]\na = model.lm_head.output\nb = block.output",
        4,
        "b = block.output",
    ),
    (
        "generation-settings",
        "with model.trace('Hello', max_new_tokens=3) as tracer:\n    ids = 1",
        1,
        "with model.generate('Hello', max_new_tokens=3) as tracer:",
    ),
    (
        "grad-outside-backward",
        TRACE + "h = model.transformer.h[1].output\nh.requires_grad_(True)\n"
        "loss = model.lm_head.output.sum()\ngrad = h.grad",
        5,
        "    grad = h.grad",
    ),
    (
        "grad-outside-backward",
        TRACE + "h = model.transformer.h[1].output\nh.requires_grad_(True)\n"
        "loss = model.lm_head.output.sum()\n"
        "with loss.backward():\n    pass\ngrad = h.grad",
        7,
        "    grad = h.grad",
    ),
    (
        "saved-elements",
        GENERATE
        + "xs = []\nfor step in tracer.iter[:]:\n    xs.append(model.lm_head.output.save())",
        4,
        "    xs.append(model.lm_head.output)",
    ),
    (
        "padding-averaged",
        TWO + "mean = model.transformer.h[1].output.mean(1)",
        2,
        'mask = model.inputs[1]["attention_mask"][..., None]',
    ),
    (
        "padding-averaged",
        "with model.trace(prompts):\n    h = model.transformer.h[1].output\n"
        "    mean = torch.mean(h, dim=1)",
        3,
        "    mean = ((h * mask).sum(1) / mask.sum(1))",
    ),
    (
        "padding-averaged",
        "%%trace model\nwith tracer.invoke('The'):\n"
        "    mean = model.transformer.h[1].output.mean(dim=-2)\n"
        "with tracer.invoke('The Eiffel Tower is in'):\n    h = model.transformer.h[1].output",
        3,
        '    mask = model.inputs[1]["attention_mask"][..., None]',
    ),
    (
        "late-write",
        TRACE + "h = model.transformer.h[1].output\nlogits = model.lm_head.output\nh[:, -1] = 0",
        4,
        "h[:, -1] = 0",
    ),
    (
        "edited-copy",
        TRACE + "h = model.transformer.h[1].output.clone()\nh[:, -1] = 0\n"
        "logits = model.lm_head.output",
        3,
        "h = model.transformer.h[1].output",
    ),
    (
        "edited-copy",
        TRACE + "model.transformer.h[1].output.clone()[:, -1] = 0",
        2,
        "model.transformer.h[1].output[:, -1] = 0",
    ),
    (
        "fixed-step",
        GENERATE + "seen = []\nfor i in range(3):\n    seen.append(model.lm_head.output[0, -1])",
        3,
        "for i in tracer.iter[:3]:",
    ),
    (
        "fixed-step",
        GENERATE + "seen = []\nfor i in range(3):\n    for step in tracer.iter[0]:\n"
        "        seen.append(model.lm_head.output)",
        3,
        "    for step in tracer.iter[i]:",
    ),
    (
        "tuple-output",
        TRACE + "model.transformer.h[1].attn.output[:, -1] = 0",
        2,
        "model.transformer.h[1].attn.output[0][:, -1] = 0",
    ),
    (
        "tuple-output",
        TRACE + "model.transformer.h[1].attn.output *= 2",
        2,
        "model.transformer.h[1].attn.output[0][:] *= 2",
    ),
    (
        "tuple-output",
        TRACE + "model.transformer.h[1].attn.output[0] = 0",
        2,
        "model.transformer.h[1].attn.output[0][:] = 0",
    ),
    (
        "first-prompt-only",
        TWO + "model.transformer.h[1].output[0][:] = 0",
        2,
        "model.transformer.h[1].output[:] = 0",
    ),
]


@pytest.mark.parametrize(("rule", "cell", "line", "repaired"), CASES)
def test_a_mistake_is_found_and_its_repair_is_clean(names, rule, cell, line, repaired):
    (found,) = findings(cell, names)
    assert (found.rule, found.line) == (rule, line)
    better = fixed(cell, found)
    assert repaired in better.splitlines()
    assert repaired.strip() in found.replacement
    assert findings(better, names) == []
    assert all((found.what, found.why, found.next))
    assert found.what[-1] in ".:"


RUNNABLE = [case for case in CASES if "edit()" not in case[1]]


@pytest.mark.parametrize("cell", [it[1] for it in RUNNABLE])
def test_a_repaired_cell_runs(cell, names, shell):
    shell.user_ns.update(names)
    (found,) = findings(cell, names)
    better = fixed(cell, found)
    assert shell.run_cell(better).success, better


def test_a_repaired_mean_is_that_of_each_prompt_alone(names, shell):
    cell = TWO + "mean = model.transformer.h[1].output.mean(1)"
    shell.user_ns.update(names)
    shell.run_cell(fixed(cell, findings(cell, names)[0]))
    with names["model"].trace("The"):
        alone = names["model"].transformer.h[1].output.mean(1)
    torch.testing.assert_close(shell.user_ns["mean"][:1], alone, atol=1e-4, rtol=1e-4)


def test_a_repaired_rebinding_reaches_the_model(names, shell):
    shell.user_ns.update(names)
    cell = TRACE + "h = model.transformer.h[1].output\nh = h * 0\nlogits = model.lm_head.output"
    shell.run_cell(cell)
    before = shell.user_ns["logits"]
    shell.run_cell(fixed(cell, findings(cell, names)[0]))
    assert not torch.equal(before, shell.user_ns["logits"])


def test_a_mistake_that_no_line_can_repair_is_told_without_a_repair(names):
    cell = TRACE + "logits = model.lm_head.output\nmodel.transformer.h[1].output = logits[..., :32]"
    (found,) = findings(cell, names)
    assert found.rule == "out-of-order"
    assert found.changes == ()
    assert found.replacement == ""


def test_a_repair_that_would_break_something_else_is_not_offered(names):
    cell = TRACE + (
        "h = model.transformer.h[1].output\na = model.lm_head.output\nh = h * 2\nb = model.output"
    )
    (found,) = findings(cell, names)
    assert found.rule == "rebound-site"
    assert found.changes == ()  # written there, it would come too late


def test_places_are_counted_in_characters(names):
    cell = TRACE + "'ä€😀'; h = model.transformer.h[1].output; h = h * 2\nmodel.lm_head.output"
    (found,) = findings(cell, names)
    assert cell.splitlines()[found.line - 1][found.column :] == "h = h * 2"
    assert fixed(cell, found).splitlines()[found.line - 1].endswith("; h[:] = h * 2")


QUIET = [
    TRACE + "logits = model.lm_head.output\nlogits = logits / 0.7",  # names outlive the cell
    TRACE + "h = model.transformer.h[1].output\nh = h * 2\nprint(h)",
    TRACE + "h = model.transformer.h[1].output\nh = h.mean(1)",
    TRACE + "h = model.transformer.h[1].output[0].save()\nh = h.detach()",
    TRACE + "h = model.transformer.h[1].output\nh = h - h.mean(-1, keepdim=True)",
    TRACE + "h = model.transformer.h[1].output\nh *= 2\nlogits = model.lm_head.output",
    TRACE + "h = model.transformer.h[1].output\ny = h + 1\nh = 0",
    TRACE + "h = model.transformer.h[1].output.clone()\nh[:, 0] = 1\n"
    "model.transformer.h[1].output = h",
    TRACE + "h = model.transformer.h[1].output.clone()\nlogits = model.lm_head.output\nh[0] = 1\nh",
    TRACE + "h = model.transformer.h[1].output\nlogits = model.lm_head.output\n"
    "h.requires_grad_(False)",
    TRACE + "a = model.transformer.h[1].output\na = model.transformer.h[2].output",
    TRACE + "a = model.transformer.h[1].output\nmodel.transformer.h[1].output[:] = 0\n"
    "b = model.transformer.h[1].output",
    TRACE + "if torch.rand(1) > 2:\n    x = model.lm_head.output\n"
    "h = model.transformer.h[1].output",
    TRACE + "for block in model.transformer.h:\n    h = block.output\nx = model.lm_head.output",
    TRACE + "late = lambda: model.lm_head.output\nh = model.transformer.h[1].output",
    TRACE + "model.transformer.h[1].attn.output[0][:] = 0",
    TRACE + "model.transformer.h[1].output[0][:] = 0",
    TRACE + "model.transformer.h[1].output[0, :2] = 0",
    TWO + "model.transformer.h[1].output[1][:] = 0",
    TWO + "m = model.transformer.h[1].output.mean(-1)",
    TWO + "m = model.transformer.h[1].output[:, -2:].mean(1)",
    "%%trace model ['The', 'The']\nm = model.transformer.h[1].output.mean(1)",
    GENERATE + "for step in tracer.iter[:]:\n    a = model.lm_head.output\n"
    "    model.transformer.h",
    GENERATE + "for i in range(2):\n    a = model.lm_head.output\n    tracer.next()",
    GENERATE + "for i in range(2):\n    a = model.transformer.h[i].output",
    GENERATE + "a = model.lm_head.output\ntracer.next()\nb = model.transformer.h[0].output",
    GENERATE + "a = model.lm_head.output\nb = model.transformer.h[0].next().output",
    GENERATE + "xs = list().save()\nfor step in tracer.iter[:]:\n    xs.append(step)",
    TRACE + "h = model.transformer.h[1].output\nloss = model.lm_head.output.sum()\n"
    "with loss.backward():\n    g = h.grad",
    TRACE + "h = model.transformer.h[1].output\nh.retain_grad()\n"
    "model.lm_head.output.sum().backward()\ng = h.grad",
    TRACE + "g = model.lm_head.weight.grad",
    "with model.generate('Hello', max_new_tokens=3): pass",
    "with other.trace('Hello', max_new_tokens=3): pass",
    "model = VLLM('gpt2')\nwith model.trace('Hello', temperature=0.7): pass",
    "with model.trace() as tracer:\n    with tracer.invoke('The'):\n"
    "        a = model.lm_head.output\n    with tracer.invoke('The'):\n"
    "        b = model.transformer.h[0].output",
    "%%timeit\nx = 1",
    "%%trace\nx = 1",
    "%%trace model 'a' --nonsense\nx = 1",
    "this is no python",
    "",
    "with open('file') as f:\n    f = 0",
]  # fmt: skip


@pytest.mark.parametrize("cell", QUIET)
def test_what_may_be_meant_is_left_alone(names, cell):
    assert findings(cell, names) == []


def test_without_a_run_nothing_is_said_of_the_order(llm):
    cell = TRACE + "logits = model.lm_head.output\nh = model.transformer.h[1].output"
    assert findings(cell, {"model": llm}) == []


def test_a_plain_module_is_looked_at_too(net, x):
    model = NNsight(net)
    with model.trace(x):
        pass
    cell = "with net.trace(x):\n    out = net.layer2.output\n    h = net.layer1.output"
    (found,) = findings(cell, {"net": model})
    assert found.rule == "out-of-order"
    settings = "with net.trace(x, temperature=1):\n    pass"  # its forward may well take one
    assert findings(settings, {"net": model}) == []


def test_ipythons_lines_do_not_hide_the_rest(names):
    cell = TRACE + "!ls\nhere = %pwd\nmodel?\nh = model.transformer.h[1].output\nh = h * 2\n"
    cell += "logits = model.lm_head.output"
    (found,) = findings(cell, names)
    assert found.line == 6


def test_looking_at_a_cell_runs_nothing_and_takes_milliseconds(names):
    class Trap:
        def __getattr__(self, name):
            raise AssertionError(name)

    names["trap"] = Trap()
    cell = TRACE + "h = trap.output\n" + "h = model.transformer.h[1].output\n" * 60
    findings(cell, names)
    took_s = []
    for _ in range(5):
        began = time.thread_time()
        findings(cell, names)
        took_s.append(time.thread_time() - began)
    assert min(took_s) < 0.05
