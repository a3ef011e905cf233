"""What is written to a site must fit it: structure, shape, dtype and device."""

import traceback

import pytest
import torch
from torch import nn

import insitu
from insitu import NNsight


def write_error(write, model, x):
    """The WriteError of a block that writes; the model is whole afterwards."""
    plain = model._module(x)
    with pytest.raises(insitu.WriteError) as caught, model.trace(x):
        write()
    assert traceback.extract_tb(caught.value.__traceback__)[-1].filename == __file__
    with model.trace(x):
        out = model.output
    torch.testing.assert_close(out, plain, rtol=0, atol=0)
    return caught.value


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.zeros(1, 9), r"shape (1, 9), not (1, 10)"),
        (torch.zeros(10), r"shape (10,), not (1, 10)"),
        (torch.zeros(1, 10, dtype=torch.float64), "dtype float64, not float32"),
        (torch.zeros(1, 10, device="meta"), "device meta, not cpu"),
        (3.0, "float, not float32[1, 10]"),
        ((torch.zeros(1, 10),), "(float32[1, 10]), not float32[1, 10]"),
        (None, "NoneType, not float32[1, 10]"),
        ("text", "str, not float32[1, 10]"),
    ],
    ids=["shape", "dimensions", "dtype", "device", "number", "tuple", "None", "text"],
)
@pytest.mark.parametrize("after_reading", [False, True])
def test_an_output_that_does_not_fit_is_refused(net, x, value, says, after_reading):
    model = NNsight(net)

    def write():
        if after_reading:
            model.layer1.output
        model.layer1.output = value

    error = write_error(write, model, x)
    assert "layer1.output" in error.what
    assert says in error.what
    assert "insitu.force" in error.next


@pytest.mark.parametrize("value", [torch.zeros(1, 9), torch.zeros(1, 10).double(), None, 3])
def test_an_input_that_does_not_fit_is_refused(net, x, value):
    model = NNsight(net)

    def write():
        model.layer2.input = value

    assert "layer2.input" in write_error(write, model, x).what


@pytest.mark.parametrize(
    "value",
    [torch.zeros(1, 10), ((), {}), ((torch.zeros(1, 9),), {}), ((1, 2), {}), 3, None],
    ids=["tensor", "empty", "shape", "two", "number", "None"],
)
def test_arguments_that_do_not_fit_are_refused(net, x, value):
    model = NNsight(net)

    def write():
        model.layer2.inputs = value

    assert "layer2.inputs" in write_error(write, model, x).what


def test_the_remedy_is_the_expression_that_fits(net, x):
    model = NNsight(net)

    def write():
        model.layer1.output = torch.zeros(1, 10, dtype=torch.float64)

    assert "value.to(torch.float32)" in write_error(write, model, x).next


def test_a_refused_value_changes_nothing_when_the_block_goes_on(net, x):
    model = NNsight(net)
    with model.trace(x):
        before = model.layer1.output
        with pytest.raises(insitu.WriteError):
            model.layer1.output = torch.zeros(2, 2)
        after = model.layer1.output
        out = model.output
    assert after is before
    assert torch.equal(out, net(x))


class Longer(nn.Module):
    """A layer whose output may have any number of rows."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Linear(4, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.rows(x)).sum(0)


def test_force_writes_another_shape():
    net = Longer()
    model = NNsight(net)
    x = torch.ones(2, 4)
    with model.trace(x):
        model.rows.output = insitu.force(torch.ones(5, 4))
        seen = model.rows.output
        out = model.output
    assert seen.shape == (5, 4)
    assert torch.equal(out, net.last(torch.ones(5, 4)).sum(0))
    with model.trace(x):
        model.last.input = insitu.force(torch.ones(3, 4))
        out = model.output
    assert torch.equal(out, net.last(torch.ones(3, 4)).sum(0))


def test_an_error_that_a_forced_value_causes_is_the_models_own(net, x):
    model = NNsight(net)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), model.trace(x):
        model.layer1.output = insitu.force(torch.ones(1, 3))
    with model.trace(x):
        out = model.output
    assert torch.equal(out, net(x))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Two()

    def forward(self, x):
        first, (second, _nothing) = self.inner(x)
        return first + second


class Two(nn.Module):
    def forward(self, x):
        return x, (x * 2, None)


def test_the_structure_of_a_tuple_is_kept(x):
    model = NNsight(Pair())
    with model.trace(x):
        model.inner.output = (x * 3, (x, None))
        out = model.output
    assert torch.equal(out, x * 4)
    for wrong in ((x, x), (x, (x,)), (x,), x, (x, (x, None), x), (x, (x[:, :2], None))):

        def write(wrong=wrong):
            model.inner.output = wrong

        write_error(write, model, x)


def test_a_part_of_a_tuple_is_edited_in_place(x):
    model = NNsight(Pair())
    with model.trace(x * 1.0):
        model.inner.output[1][0][:] = 1
        out = model.output
    assert torch.equal(out, x + 1)


def test_the_message_names_the_part_of_a_tuple(x):
    model = NNsight(Pair())

    def write():
        model.inner.output = (x, (x[:, :2], None))

    assert "part 1: part 0: shape (1, 2), not (1, 5)" in write_error(write, model, x).what


def test_a_model_output_keeps_its_class(tiny_gpt2, llm):
    model, _ = tiny_gpt2
    ids = torch.tensor([[5, 6, 7]])
    with llm.trace(ids) as tracer:
        out = llm.output
        out.logits[:, -1] = 0
        llm.output = out
        result = tracer.result
    assert type(result) is type(model(ids))
    assert not result.logits[:, -1].any()
    with pytest.raises(insitu.WriteError, match="logits"), llm.trace(ids):
        llm.output = {"past_key_values": None}


@pytest.mark.parametrize(
    ("typo", "meant"), [("ouput", "output"), ("outputs", "output"), ("imput", "input")]
)
def test_a_misspelt_site_is_not_written_silently(net, x, typo, meant):
    model = NNsight(net)
    for node in (model, model.layer1):
        with pytest.raises(AttributeError, match=f"did you mean .*{meant}"), model.trace(x):
            setattr(node, typo, torch.zeros(1, 10))


def test_a_wrapped_submodule_takes_no_attributes(net):
    with pytest.raises(insitu.UnknownModuleError, match="can be written"):
        NNsight(net).layer1.scale = 3


def test_a_skip_that_does_not_fit_what_the_module_returned_is_refused(net, x):
    model = NNsight(net)
    with model.trace(x):
        pass
    with pytest.raises(insitu.WriteError, match=r"layer1\.skip"), model.trace(x):
        model.layer1.skip((torch.zeros(1, 10),))
    with model.trace(x):
        out = model.output
    assert torch.equal(out, net(x))


def test_a_skip_fits_a_model_that_was_cast_since_and_one_under_autocast(net, x):
    model = NNsight(net)
    with model.trace(x):
        pass
    with torch.autocast("cpu", dtype=torch.bfloat16), model.trace(x):
        model.layer1.skip(torch.zeros(1, 10, dtype=torch.bfloat16))
        under_autocast = model.layer2.input
    assert under_autocast.dtype is torch.bfloat16
    net.double()
    with model.trace(x.double()):
        model.layer1.skip(torch.zeros(1, 10, dtype=torch.float64))
        out = model.output
    assert torch.equal(out, net.layer2(torch.zeros(1, 10, dtype=torch.float64)))


def test_a_skip_may_bring_what_was_none_before(x):
    class Pair(nn.Module):
        def forward(self, x, both=False):
            return x, x if both else None

    net = nn.Sequential(Pair())
    model = NNsight(net)
    with model.trace(x):
        pass
    with model.trace(x):
        model[0].skip((x * 2, x))
        first, second = model.output
    assert torch.equal(first, x * 2)
    assert torch.equal(second, x)


def test_a_dict_is_replaced_by_a_dict_alone(x):
    class Named(nn.Module):
        def forward(self, x):
            return {"h": x * 2}

    model = NNsight(nn.Sequential(Named()))
    with pytest.raises(insitu.WriteError, match=r"does not fit: float32\[1, 5\], not dict"):
        with model.trace(x):
            model[0].output = torch.zeros(1, 5)
    with model.trace(x):
        model[0].output = {"h": torch.zeros(1, 5)}
        out = model.output
    assert not out["h"].any()


def test_none_is_no_value_for_what_a_module_returns(x):
    class Opaque:
        pass

    class Gives(nn.Module):
        def forward(self, x):
            return Opaque()

    model = NNsight(nn.Sequential(Gives()))
    for value in (None, insitu.force(None)):
        with pytest.raises(insitu.WriteError, match=r"None cannot be written to 0\.output"):
            with model.trace(x):
                model[0].output = value
