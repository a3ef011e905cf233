"""A site asked for too late, or that never comes: three lines, the user's line, early."""

import inspect
import traceback

import pytest
import torch
from reference import counting, outputs
from torch import nn

import insitu
from insitu import NNsight
from insitu.engine.wrapped import WrappedModule


def here():
    return inspect.currentframe().f_back.f_lineno


def last_line(error):
    frame = traceback.extract_tb(error.__traceback__)[-1]
    assert frame.filename == __file__
    return frame.lineno


@pytest.mark.parametrize("passes_before", [0, 1, 2])
def test_a_module_that_has_passed_raises_at_the_users_line(net, x, passes_before):
    model = NNsight(net)
    for _ in range(passes_before):
        with model.trace(x):
            pass
    with pytest.raises(insitu.OutOfOrderError) as caught, model.trace(x):
        asked = here() + 1
        model.layer2.output
        late = here() + 1
        model.layer1.output
    error = caught.value
    assert last_line(error) == late
    first, why, next_ = str(error).splitlines()
    assert first == "layer1.output was asked for, but the model has already passed it."
    assert why.startswith("Why: ")
    assert f"layer2.output (line {asked})" in why
    assert next_.startswith("Next: ")
    assert f"read layer1.output above line {asked}" in next_
    with model.trace(x):
        out = model.output
    assert torch.equal(out, net(x))


@pytest.mark.parametrize("asked", ["output", "input", "inputs", "write", "write_input", "skip"])
@pytest.mark.parametrize("passes_before", [0, 1])
def test_every_way_of_asking_too_late_raises_the_same_error(net, x, asked, passes_before):
    model = NNsight(net)
    for _ in range(passes_before):
        with model.trace(x):
            pass

    def ask(node):
        if asked == "write":
            node.output = torch.zeros(1, 10)
        elif asked == "write_input":
            node.input = torch.zeros(1, 5)
        elif asked == "skip":
            node.skip(torch.zeros(1, 10))
        else:
            getattr(node, asked)

    with pytest.raises(insitu.TraceError, match="layer1") as caught, model.trace(x):
        model.layer2.output
        ask(model.layer1)
    if not (asked == "skip" and passes_before == 0):  # there only the end of the pass can tell
        assert type(caught.value) is insitu.OutOfOrderError
        assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "ask"


def deep():
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(3, 3) for _ in range(6)])


@pytest.mark.parametrize("passes_before", [0, 1])
def test_on_a_later_pass_the_error_comes_before_any_other_module_runs(passes_before):
    net = deep()
    model, ones = NNsight(net), torch.ones(1, 3)
    for _ in range(passes_before):
        with model.trace(ones):
            pass
    with counting(net) as calls, pytest.raises(insitu.OutOfOrderError), model.trace(ones):
        model[2].output
        model[1].output
    if passes_before:
        assert calls == {"model": 1, "0": 1, "1": 1, "2": 1}


def test_the_input_of_a_module_that_stands_at_its_output_cannot_be_written(net, x):
    model = NNsight(net)
    with pytest.raises(insitu.OutOfOrderError, match=r"layer1\.input cannot be written any more"):
        with model.trace(x):
            model.layer1.output
            model.layer1.input = x


def test_the_input_of_a_parent_comes_before_its_children(net, x):
    model = NNsight(nn.Sequential(net))
    for _ in range(2):
        with pytest.raises(insitu.OutOfOrderError, match=r"0\.input"), model.trace(x):
            model[0].layer1.output
            model[0].input


def test_reading_a_second_time_after_going_on_raises(net, x):
    model = NNsight(net)
    for _ in range(2):
        with pytest.raises(insitu.OutOfOrderError, match=r"layer1\.output"), model.trace(x):
            model.layer1.output
            model.layer2.output
            model.layer1.output


def test_after_the_result_every_site_has_passed(net, x):
    model = NNsight(net)
    for _ in range(2):
        with pytest.raises(insitu.OutOfOrderError, match=r"layer2\.output"):
            with model.trace(x) as tracer:
                tracer.result
                model.layer2.output


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        return self.used(x)


@pytest.mark.parametrize("passes_before", [0, 1])
@pytest.mark.parametrize("site", ["output", "input"])
def test_a_module_that_never_runs_says_what_ran(passes_before, site):
    model, ones = NNsight(Unused()), torch.ones(1, 3)
    for _ in range(passes_before):
        with model.trace(ones):
            pass
    with pytest.raises(insitu.NeverRanError) as caught, model.trace(ones):
        late = here() + 1
        getattr(model.unused, site)
    first, why, next_ = str(caught.value).splitlines()
    assert last_line(caught.value) == late
    assert first == f"unused.{site} was asked for, but unused did not run in this pass."
    assert "used.0" in why
    assert "used.1" in why
    assert next_.startswith("Next: read one of those")


def test_a_module_list_is_never_called_itself(llm):
    with pytest.raises(insitu.NeverRanError, match=r"transformer\.h did not run"):
        with llm.trace("Once upon a time"):
            llm.transformer.h.output


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("trasformer", "transformer"),
        ("transformer.ln_ff", "transformer.ln_f"),
        ("lm_hed", "lm_head"),
    ],
)
def test_an_unknown_module_names_the_nearest(llm, path, meant):
    node = llm
    *parents, last = path.split(".")
    for name in parents:
        node = getattr(node, name)
    with pytest.raises(insitu.UnknownModuleError, match=f"did you mean {meant}") as caught:
        getattr(node, last)
    assert isinstance(caught.value, AttributeError)
    with pytest.raises(insitu.UnknownModuleError, match=f"did you mean {meant}"):
        llm[path]
    assert not hasattr(llm, "nothing_of_this_name")
    assert getattr(llm, "nothing_of_this_name", 3) == 3


def test_an_error_the_block_catches_leaves_the_pass_usable(net, x):
    model = NNsight(net)
    for _ in range(2):
        with model.trace(x):
            model.layer1.output
            hidden = model.layer2.input
            with pytest.raises(insitu.TraceError):
                model.layer1.input = x
        assert torch.equal(hidden, net.layer1(x))


# Generation: a step's sites never stand for another's ------------------------------------------


def test_an_early_site_asked_for_late_in_a_step_does_not_bind_to_the_next(llm):
    for _ in range(2):
        with pytest.raises(insitu.OutOfOrderError, match=r"transformer\.h\.0\.output"):
            with llm.generate("Once upon a time", max_new_tokens=4) as tracer:
                for _step in tracer.iter[:]:
                    llm.transformer.h[2].output
                    llm.transformer.h[0].output


def test_the_same_inside_one_step_of_several(llm):
    for _ in range(2):
        with pytest.raises(insitu.OutOfOrderError, match="step 2"):
            with llm.generate("Once upon a time", max_new_tokens=4) as tracer:
                for step in tracer.iter[:]:
                    llm.lm_head.output
                    if step == 2:
                        llm.transformer.h[0].output


def test_without_a_loop_a_late_read_does_not_bind_to_the_next_step(llm):
    for _ in range(2):
        with pytest.raises(insitu.OutOfOrderError):
            with llm.generate("Once upon a time", max_new_tokens=4):
                llm.lm_head.output
                llm.transformer.h[0].input


def test_after_the_loop_the_steps_are_over(llm):
    with pytest.raises(insitu.OutOfOrderError):
        with llm.generate("Once upon a time", max_new_tokens=2) as tracer:
            for _step in tracer.iter[:]:
                llm.lm_head.output
            llm.lm_head.output


# Legal programs never raise --------------------------------------------------------------------


class Switching(nn.Module):
    """The order of its modules depends on the input."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.b(self.a(x)) if x.sum() > 0 else self.a(self.b(x))


def test_an_order_that_depends_on_the_input_is_followed():
    net = Switching()
    model, ones = NNsight(net), torch.ones(1, 3)
    with model.trace(ones):
        model.a.output
        model.b.output
    with model.trace(-ones):
        b = model.b.output
        a = model.a.output
    assert torch.equal(b, net.b(-ones))
    assert torch.equal(a, net.a(b))


class Looping(nn.Module):
    """Calls its modules as often as it is told."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.extra = nn.Linear(3, 3)

    def forward(self, x, times=1):
        for _ in range(times):
            x = self.b(self.a(x))
        return self.extra(x) if times > 1 else x


def test_a_number_of_calls_that_depends_on_the_input_is_followed():
    net = Looping()
    model, ones = NNsight(net), torch.ones(1, 3)
    with model.trace(ones):
        model.a.output
    expected = outputs(net, ["a", "b"], ones, times=2)
    with model.trace(ones, times=2):
        a0 = model.a.output
        b0 = model.b.output
        a1 = model.a.output
        b1 = model.b.output
        extra = model.extra.output  # did not run in the pass that taught the order
        out = model.output
    assert torch.equal(a0, expected["a"][0])
    assert torch.equal(b0, expected["b"][0])
    assert torch.equal(a1, expected["a"][1])
    assert torch.equal(b1, expected["b"][1])
    assert extra is out


def test_training_and_evaluation_may_take_other_ways():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.first(x) if self.training else self.first(self.second(x))

    net = Net()
    model, ones = NNsight(net), torch.ones(1, 3)
    with model.trace(ones):
        model.first.output
    net.eval()
    with model.trace(ones):
        second = model.second.output
        model.first.output
    assert torch.equal(second, net.second(ones))
    with pytest.raises(insitu.OutOfOrderError), model.trace(ones):
        model.first.output
        model.second.output


def test_every_pair_of_sites_in_order_is_legal_and_against_it_is_not(tiny_gpt2):
    model, tokenizer = tiny_gpt2
    paths = [
        "transformer.wte",
        "transformer.h.0.attn",
        "transformer.h.0",
        "transformer.h.3",
        "lm_head",
    ]
    llm = insitu.LanguageModel(model, tokenizer=tokenizer)
    ids = torch.tensor([[5, 6]])
    for i, first in enumerate(paths):
        for second in paths[i + 1 :]:
            with llm.trace(ids):
                llm[first].output
                llm[second].output
            with pytest.raises(insitu.OutOfOrderError), llm.trace(ids):
                llm[second].output
                llm[first].output


class Half(nn.Module):
    """Calls one of its two modules."""

    def __init__(self, used):
        super().__init__()
        self.used, self.unused = used, nn.Identity()

    def forward(self, x):
        return self.used(x)


def test_an_error_looks_over_the_model_once_whatever_its_size(monkeypatch):
    model = NNsight(Half(nn.Sequential(*(nn.Identity() for _ in range(50)))))
    walks = []
    nodes = WrappedModule._nodes
    monkeypatch.setattr(WrappedModule, "_nodes", lambda it: walks.append(it) or nodes(it))
    with pytest.raises(insitu.NeverRanError), model.trace(torch.ones(1)):
        model.unused.output
    assert walks.count(model) == 1
