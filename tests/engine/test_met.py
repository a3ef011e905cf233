"""A block's own call with `hook=True`: its sites are met by others, and read by the caller."""

import pytest
import torch
from reference import inputs, outputs
from torch import nn

import insitu
from insitu import NNsight


class SAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(10, 16)
        self.decoder = nn.Linear(16, 10)

    def forward(self, hidden):
        return self.decoder(self.encoder(hidden))


@pytest.fixture
def sae():
    torch.manual_seed(2)
    return SAE()


@pytest.fixture
def batch():
    torch.manual_seed(3)
    return torch.rand(2, 5)


@pytest.fixture(params=["first", "later"])
def model(request, net, sae, batch):
    """In its first pass, which is observed, and in later ones."""
    model = NNsight(net)
    model.layer1.sae = sae
    if request.param == "later":
        with model.trace(batch):
            pass
    yield model
    for module in sae.modules():
        assert "forward" not in vars(module)
        assert not module._forward_hooks


@pytest.fixture
def with_sae(model):
    """The model with an edit that puts the SAE's reconstruction in place of the hidden state."""
    with model.edit(inplace=True):
        model.layer1.output = model.layer1.sae(model.layer1.output, hook=True)
    return model


def test_the_caller_reads_the_sites_of_its_own_call(model, net, sae, batch):
    with model.trace(batch):
        hidden = model.layer1.output
        model.layer1.output = model.layer1.sae(hidden, hook=True)
        features = model.layer1.sae.encoder.output
        given = model.layer1.sae.decoder.input
        whole = model.layer1.sae.inputs, model.layer1.sae.output
        out = model.output
    expected = outputs(sae, ["encoder", "model"], net.layer1(batch))
    assert torch.equal(features, expected["encoder"][0])
    assert torch.equal(given, inputs(sae, ["decoder"], net.layer1(batch))["decoder"][0][0][0])
    assert torch.equal(whole[0][0][0], net.layer1(batch))
    assert torch.equal(whole[1], expected["model"][0])
    assert torch.equal(out, net.layer2(sae(net.layer1(batch))))


def test_a_second_call_is_the_one_that_is_read(model, net, sae, batch):
    with model.trace(batch):
        hidden = model.layer1.output
        model.layer1.sae(hidden, hook=True)
        model.layer1.sae(hidden * 2, hook=True)
        features = model.layer1.sae.encoder.output
    assert torch.equal(features, sae.encoder(net.layer1(batch) * 2))


def test_a_plain_call_meets_no_sites(model, batch):
    with pytest.raises(insitu.NeverRanError, match=r"no call of layer1\.sae follows"):
        with model.trace(batch):
            model.layer1.sae(model.layer1.output)
            model.layer1.sae.output


@pytest.mark.parametrize("site", ["output", "input", "inputs"])
def test_what_the_caller_has_computed_cannot_be_written(model, batch, site):
    with pytest.raises(insitu.OutOfOrderError, match="this block has called it itself"):
        with model.trace(batch):
            model.layer1.sae(model.layer1.output, hook=True)
            sae = model.layer1.sae
            setattr(sae, site, getattr(sae, site))


def test_calling_a_module_of_the_models_does_not_answer_for_its_own_call(model, net, batch):
    with model.trace(batch):
        early = model.layer2(model.layer1.output * 0, hook=True)
        out = model.layer2.output
    assert torch.equal(early, net.layer2(torch.zeros(2, 10)))
    assert torch.equal(out, net(batch))


def test_a_trace_meets_the_call_of_an_edit(with_sae, net, sae, batch):
    with with_sae.trace(batch):
        given = with_sae.layer1.sae.input
        features = with_sae.layer1.sae.encoder.output.clone()
        with_sae.layer1.sae.encoder.output[:, 0] = 0
        reconstruction = with_sae.layer1.sae.output
        out = with_sae.output
    hidden = net.layer1(batch)
    ablated = sae.encoder(hidden).index_fill(1, torch.tensor([0]), 0)
    assert torch.equal(given, hidden)
    assert torch.equal(features, sae.encoder(hidden))
    assert torch.equal(reconstruction, sae.decoder(ablated))
    assert torch.equal(out, net.layer2(reconstruction))


def test_invokes_meet_the_call_of_an_edit_with_their_rows(with_sae, net, sae, batch):
    with with_sae.trace() as tracer:
        with tracer.invoke(batch[:1]):
            first = with_sae.layer1.sae.encoder.output.clone()
            with_sae.layer1.sae.encoder.output[:] = 0
            ablated = with_sae.output
        with tracer.invoke(batch[1:]):
            second = with_sae.layer1.sae.encoder.output
            whole = with_sae.output
    expected = sae.encoder(net.layer1(batch))
    torch.testing.assert_close(torch.cat([first, second]), expected)
    torch.testing.assert_close(ablated, net.layer2(sae.decoder(torch.zeros(1, 16))))
    torch.testing.assert_close(whole, net.layer2(sae(net.layer1(batch)))[1:])


def test_an_invokes_call_is_its_own(model, net, sae, batch):
    with model.trace() as tracer:
        with tracer.invoke(batch[:1]):
            model.layer1.output = model.layer1.sae(model.layer1.output, hook=True)
            first = model.layer1.sae.encoder.output
            replaced = model.output
        with tracer.invoke(batch[1:]):
            model.layer1.sae(model.layer1.output, hook=True)
            second = model.layer1.sae.encoder.output
            untouched = model.output
    torch.testing.assert_close(torch.cat([first, second]), sae.encoder(net.layer1(batch)))
    torch.testing.assert_close(replaced, net.layer2(sae(net.layer1(batch)))[:1])
    torch.testing.assert_close(untouched, net(batch)[1:])


def test_asking_too_late_for_the_call_of_an_edit_says_so(with_sae, batch):
    with pytest.raises(insitu.NeverRanError, match=r"no call of layer1\.sae follows"):
        with with_sae.trace(batch):
            with_sae.layer2.output
            with_sae.layer1.sae.output


def test_a_block_that_fails_or_stops_inside_the_call_leaves_nothing(with_sae, net, sae, batch):
    with pytest.raises(ZeroDivisionError), with_sae.trace(batch):
        with_sae.layer1.sae.encoder.output
        1 / 0
    with with_sae.trace(batch) as tracer:
        with_sae.layer1.sae.encoder.output
        tracer.stop()
    with with_sae.trace(batch):
        out = with_sae.output
    assert torch.equal(out, net.layer2(sae(net.layer1(batch))))


def test_an_error_of_the_called_module_is_the_callers(model, net, batch):
    with pytest.raises(RuntimeError, match="multiplied"), model.trace(batch):
        model.layer1.output
        model.layer1.sae(torch.ones(1, 3), hook=True)
    with model.trace(batch):
        out = model.output
    assert torch.equal(out, net(batch))


def test_after_the_pass_has_run_a_call_leaves_nothing_behind(model, sae, batch):
    with model.trace(batch) as tracer:
        tracer.result
        made = model.layer1.sae(torch.ones(1, 10), hook=True)
        assert torch.equal(model.layer1.sae.output, made)


def test_what_was_met_in_a_step_is_not_read_in_the_next(llm):
    llm.transformer.h[0].probe = nn.Linear(32, 2)
    with pytest.raises(insitu.TraceError, match="probe"):
        with llm.generate("Once", max_new_tokens=3) as tracer:
            for step in tracer.iter[:]:
                if step == 0:
                    llm.transformer.h[0].probe(llm.transformer.h[0].output, hook=True)
                llm.transformer.h[0].probe.output


def test_an_edits_call_is_met_in_every_step(llm):
    llm.transformer.h[0].probe = probe = nn.Linear(32, 2)
    with llm.edit(inplace=True):
        llm.transformer.h[0].probe(llm.transformer.h[0].output, hook=True)
    found = []
    with llm.generate("Once upon a time", max_new_tokens=3) as tracer:
        for _ in tracer.iter[:]:
            found.append((llm.transformer.h[0].probe.input, llm.transformer.h[0].probe.output))
    assert len(found) == 3
    assert all(torch.equal(out, probe(given)) for given, out in found)
