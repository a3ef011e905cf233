"""Standard names: a write changes the model exactly as the same edit by plain hooks."""

import contextlib

import pytest
import torch
from families import FAMILIES, HEADS
from reference import hooks
from standard_oracle import (
    ATTENDING,
    CLOSE,
    D_HEAD,
    IDS,
    LOCAL,
    ORACLES,
    REAL_QKV,
    each,
    given,
    result,
    run,
    seen,
    split,
    with_part,
)  # fmt: skip

import insitu
from insitu import LanguageModel

SPLIT_QKV = [name for name in ATTENDING if name not in REAL_QKV]


@pytest.fixture
def noise():
    return torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(4))


def wrapped(name, kind=None):
    return LanguageModel(FAMILIES[name].built(kind))


def by_head(tensor):
    return tensor.view(*tensor.shape[:-1], HEADS, D_HEAD)


# Heads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", each(SPLIT_QKV))
def test_queries_keys_and_values_are_replaced(name):
    model, oracle = wrapped(name), ORACLES[name]
    net = model._module
    for number, which in enumerate("qkv"):
        with model.trace(**given(name)) as tracer:
            attention = model.layers[1].attention
            before = getattr(attention, which)
            kept = before.clone()
            setattr(attention, which, before.flip(2) * 2)
            assert torch.equal(before, kept)
            out = result(name, tracer.result)
        path = f"{oracle.layer(1)}.{oracle.attention}.{getattr(oracle, which)}"

        def change(fused, number=number):
            return with_part(name, fused, number, split(name, fused, number).flip(2) * 2)

        expected = result(name, run(net, name, [(path, change, "output")]))
        assert torch.equal(out, expected)
        assert not torch.equal(out, result(name, run(net, name)))


@pytest.mark.parametrize("name", each(SPLIT_QKV))
def test_queries_keys_and_values_are_edited_in_place(name):
    model, oracle = wrapped(name), ORACLES[name]
    with model.trace(**given(name)) as tracer:
        attention = model.layers[1].attention
        attention.q[:, :, 1] = 0
        attention.v += 1
        out = result(name, tracer.result)

    def edit_q(fused):
        part = split(name, fused, 0).clone()
        part[:, :, 1] = 0
        return with_part(name, fused, 0, part)

    def edit_v(fused):
        return with_part(name, fused, 2, split(name, fused, 2) + 1)

    base = f"{oracle.layer(1)}.{oracle.attention}"
    changes = [(f"{base}.{oracle.q}", edit_q, "output"), (f"{base}.{oracle.v}", edit_v, "output")]
    assert torch.equal(out, result(name, run(model._module, name, changes)))


@pytest.mark.parametrize("name", each(ATTENDING))
def test_what_heads_give_is_written_through(name):
    model, oracle = wrapped(name), ORACLES[name]
    with model.trace(**given(name)) as tracer:
        attention = model.layers[1].attention
        attention.z[:, :, 2] = 0
        out = result(name, tracer.result)
    with model.trace(**given(name)) as tracer:
        attention = model.layers[1].attention
        z = attention.z.clone()
        z[:, :, 2] = 0
        attention.z = z
        assert torch.equal(result(name, tracer.result), out)

    def change(mixed):
        heads = by_head(mixed.clone())
        heads[:, :, 2] = 0
        return heads.flatten(-2)

    path = f"{oracle.layer(1)}.{oracle.attention}.{oracle.out}"
    expected = result(name, run(model._module, name, [(path, change, "input")]))
    assert torch.equal(out, expected)


# The pattern ------------------------------------------------------------------------------------


def attended(name, pattern, net):
    """The result when the heads of layer 1 weigh their values so, by plain hooks."""
    oracle = ORACLES[name]
    base = f"{oracle.layer(1)}.{oracle.attention}"
    v = split(name, seen(net, name, f"{base}.{oracle.v}"), 2)
    v = v.repeat_interleave(HEADS // v.shape[2], 2)
    z = torch.einsum("bhqk,bkhd->bqhd", pattern, v).flatten(-2)
    return result(name, run(net, name, [(f"{base}.{oracle.out}", lambda _: z, "input")]))


@pytest.mark.parametrize("name", each(ATTENDING))
def test_the_model_goes_on_with_another_pattern(name):
    for kind in FAMILIES[name].kinds:
        model = wrapped(name, kind)
        with model.trace(**given(name)) as tracer:
            attention = model.layers[1].attention
            attention.pattern = attention.pattern.flip(1)
            attention.pattern[:, 0] = 0.25
            written = attention.pattern.clone()
            out = result(name, tracer.result)
        torch.testing.assert_close(out, attended(name, written, model._module), **CLOSE)
        assert not torch.allclose(out, result(name, run(model._module, name)), atol=1e-3)


@pytest.mark.parametrize("name", each(ATTENDING))
def test_the_model_goes_on_with_other_scores(name):
    model = wrapped(name)
    with model.trace(**given(name)) as tracer:
        attention = model.layers[1].attention
        attention.scores[..., 0] = -1e9
        attention.scores[..., 0, 0] = 0
        pattern = attention.pattern.clone()
        out = result(name, tracer.result)
    assert (pattern[..., 1:, 0] == 0).all()
    torch.testing.assert_close(out, attended(name, pattern, model._module), **CLOSE)


def test_asking_for_a_pattern_leaves_the_model_as_it_is():
    model = wrapped("llama", "sdpa")
    before = model._module(IDS).logits
    with model.trace(IDS):
        model.layers[0].attention.pattern
        logits = model.lm_head.output.clone()
    torch.testing.assert_close(logits, before, **CLOSE)
    assert model._module.config._attn_implementation == "sdpa"
    assert torch.equal(model._module(IDS).logits, before)
    with model.trace(IDS):
        assert torch.equal(model.lm_head.output, before)


def test_queries_are_read_before_the_pattern_and_what_heads_give_after_it(llm):
    with llm.trace("The Eiffel Tower is in"):
        attention = llm.layers[1].attention
        q, k = attention.q, attention.k
        pattern = attention.pattern
        z = attention.z
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / D_HEAD**0.5
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    torch.testing.assert_close(scores.masked_fill(hidden, -1e30).softmax(-1), pattern, **CLOSE)
    assert z.shape == q.shape


# The stream -------------------------------------------------------------------------------------


@contextlib.contextmanager
def stream_replaced(net, name, value):
    """The oracle: what goes into the norm is changed where it lies, so that the sum sees it."""
    oracle = ORACLES[name]

    def change(module, args):
        args[0].copy_(value(args[0]))

    norm = net.get_submodule(f"{oracle.layer(0)}.{oracle.norm_of_mlp}")
    with hooks([norm.register_forward_pre_hook(change)]):
        yield


@pytest.mark.parametrize("name", each(LOCAL))
def test_the_stream_between_the_parts_is_replaced_everywhere_in_its_layer(name, noise):
    model = wrapped(name)
    with model.trace(**given(name)) as tracer:
        layer = model.layers[0]
        before = layer.resid_mid
        kept = before.clone()
        layer.resid_mid = before * 0.5 + noise
        assert torch.equal(before, kept)
        assert torch.equal(layer.resid_mid, before * 0.5 + noise)
        out = result(name, tracer.result)
    shaped = (lambda x: noise.view(x.shape)) if name == "opt" else (lambda x: noise)
    with stream_replaced(model._module, name, lambda x: x * 0.5 + shaped(x)):
        expected = result(name, run(model._module, name))
    assert torch.equal(out, expected)
    assert not torch.allclose(out, result(name, run(model._module, name)), atol=1e-3)


@pytest.mark.parametrize("name", each(LOCAL))
def test_the_stream_between_the_parts_is_edited_in_place_and_again(name, noise):
    model = wrapped(name)
    with model.trace(**given(name)) as tracer:
        layer = model.layers[0]
        layer.resid_mid[:, 2] = 0
        layer.resid_mid += 1
        layer.resid_mid = layer.resid_mid * 2
        layer.resid_mid[:, 3] = 5
        layer.resid_mid = layer.resid_mid + noise
        out = result(name, tracer.result)

    def change(value):
        stream = value.view(1, 6, 32).clone()
        stream[:, 2] = 0
        stream = (stream + 1) * 2
        stream[:, 3] = 5
        return (stream + noise).view(value.shape)

    with stream_replaced(model._module, name, change):
        expected = result(name, run(model._module, name))
    assert torch.equal(out, expected)


@pytest.mark.parametrize(("name", "path", "at"), [
    ("bert", "encoder.layer.0.attention", "output"), ("t5", "decoder.block.0.layer.2", "input"),
])  # fmt: skip
@pytest.mark.parametrize("in_place", [True, False])
def test_where_a_module_holds_the_whole_stream_it_is_replaced_there(name, path, at, in_place):
    model = wrapped(name)
    with model.trace(**given(name)) as tracer:
        layer = model.layers[0]
        if in_place:
            layer.resid_mid *= 2
        else:
            layer.resid_mid = layer.resid_mid * 2
        out = result(name, tracer.result)
    expected = result(name, run(model._module, name, [(path, lambda x: x * 2, at)]))
    assert torch.equal(out, expected)


@pytest.mark.parametrize("name", each([*ATTENDING, "mamba"]))
def test_both_ends_of_a_layer_are_written(name, noise):
    model = wrapped(name)
    path = "backbone.layers.0" if name == "mamba" else ORACLES[name].layer(0)
    for site, at in (("resid_pre", "input"), ("resid_post", "output")):
        with model.trace(**given(name)) as tracer:
            setattr(model.layers[0], site, getattr(model.layers[0], site) + noise)
            out = result(name, tracer.result)
        expected = result(name, run(model._module, name, [(path, lambda x: x + noise, at)]))
        assert torch.equal(out, expected)
        with model.trace(**given(name)) as tracer:
            getattr(model.layers[0], site)[:, 1] = 0
            out = result(name, tracer.result)

        def zeroed(value):
            value = value.clone()
            value[:, 1] = 0
            return value

        expected = result(name, run(model._module, name, [(path, zeroed, at)]))
        assert torch.equal(out, expected)


@pytest.mark.parametrize("name", each(ATTENDING))
def test_what_the_parts_add_is_written(name, noise):
    model, oracle = wrapped(name), ORACLES[name]
    for part, adds in (("attn_out", oracle.attn_adds), ("mlp_out", oracle.mlp_adds)):
        with model.trace(**given(name)) as tracer:
            before = getattr(model.layers[0], part)
            setattr(model.layers[0], part, before + noise)
            out = result(name, tracer.result)
        change = (f"{oracle.layer(0)}.{adds}", lambda x: x + noise.view(x.shape), "output")
        assert torch.equal(out, result(name, run(model._module, name, [change])))


@pytest.mark.parametrize("name", ["opt", "bert"])
def test_an_mlp_without_a_module_of_its_own_is_written(name, noise):
    model, oracle = wrapped(name), ORACLES[name]
    with model.trace(**given(name)) as tracer:
        model.layers[0].mlp.output = model.layers[0].mlp.output + noise
        model.layers[1].mlp.output[:, 2] = 0
        out = result(name, tracer.result)

    def zeroed(value):
        value = value.clone()
        value[2 if value.dim() == 2 else (slice(None), 2)] = 0
        return value

    changes = [
        (f"{oracle.layer(0)}.{oracle.mlp_adds}", lambda x: x + noise.view(x.shape), "output"),
        (f"{oracle.layer(1)}.{oracle.mlp_adds}", zeroed, "output"),
    ]
    assert torch.equal(out, result(name, run(model._module, name, changes)))
    with pytest.raises(insitu.UnknownModuleError, match="nothing called 'act'"):
        model.layers[0].mlp.act
    with pytest.raises(insitu.UnknownModuleError, match="that can be written"):
        model.layers[0].mlp.act = 3


# In invokes, steps, gradients, edits --------------------------------------------------------------


OTHER = torch.tensor([[7, 3, 3, 20, 30, 1]])
WRITABLE = ["q", "v", "z", "pattern", "scores", "resid_pre", "resid_mid", "resid_post", "mlp_out"]


def scale_some(layer, value, replaced):
    """Change one value of a layer, in place or by another."""
    owner = layer.attention if value in ("q", "v", "z", "pattern", "scores") else layer
    found = getattr(owner, value)
    by = torch.linspace(0.5, 1.5, found.shape[-1])  # a norm would undo one factor for all
    if replaced:
        setattr(owner, value, found * by)
    else:
        found[:, 1] *= by


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "opt", "phi3", "t5"])
@pytest.mark.parametrize("replaced", [True, False])
def test_in_an_invoke_its_own_rows_are_written(name, replaced):
    model, close = wrapped(name), {"rtol": 1e-3, "atol": 1e-4}
    lacking = {"gpt_neox": ["resid_mid"], "t5": ["q", "v"]}.get(name, [])

    def alone(ids, value=None):
        with model.trace(**given(name, ids)) as tracer:
            if value:
                scale_some(model.layers[1], value, replaced)
            return result(name, tracer.result).clone()

    plain = alone(IDS), alone(OTHER)
    for value in WRITABLE:
        if value in lacking:
            continue
        with model.trace() as tracer:
            with tracer.invoke(**given(name, IDS)):
                scale_some(model.layers[1], value, replaced)
                one = model.unembed.output.save()
            with tracer.invoke(**given(name, OTHER)):
                other = model.unembed.output.save()
        torch.testing.assert_close(one, alone(IDS, value), **close)
        torch.testing.assert_close(other, plain[1], **close)
        assert not torch.allclose(one, plain[0], **close)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_two_invokes_replace_the_stream_each_in_its_rows(name, noise):
    model = wrapped(name)

    def alone(ids, by):
        with model.trace(**given(name, ids)):
            model.layers[0].resid_mid = model.layers[0].resid_mid * by
            return model.unembed.output.clone()

    with model.trace() as tracer:
        with tracer.invoke(IDS):
            model.layers[0].resid_mid = model.layers[0].resid_mid * 2
            one = model.unembed.output.save()
        with tracer.invoke(OTHER):
            before = model.layers[0].resid_mid
            kept = before.clone()
            model.layers[0].resid_mid = before * 3
            assert torch.equal(before, kept)
            other = model.unembed.output.save()
    torch.testing.assert_close(one, alone(IDS, 2), **CLOSE)
    torch.testing.assert_close(other, alone(OTHER, 3), **CLOSE)


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt"])
def test_values_are_written_in_every_step_of_a_generation(name):
    model, shapes = wrapped(name), []
    with model.generate(IDS, max_new_tokens=3) as tracer:
        for _ in tracer.iter[:]:
            layer = model.layers[1]
            layer.attention.pattern[:, 0] = 0
            shapes.append(tuple(layer.attention.pattern.shape[-2:]))
            layer.resid_mid = layer.resid_mid * 0.5
        ids = model.generator.output.clone()
    assert shapes == [(6, 6), (1, 7), (1, 8)]
    row = IDS
    for _ in range(3):  # the same without a cache, token by token
        with model.trace(row):
            layer = model.layers[1]
            layer.attention.pattern[:, 0] = 0
            layer.resid_mid = layer.resid_mid * 0.5
            token = model.unembed.output[:, -1].argmax(-1, keepdim=True)
        row = torch.cat([row, token], 1)
    assert torch.equal(ids, row)


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "gpt_neox"])
def test_gradients_reach_every_value(name):
    net = FAMILIES[name].build("eager")
    net.requires_grad_(True)
    model, oracle = LanguageModel(net), ORACLES[name]
    with model.trace(**given(name)):
        layer = model.layers[0]
        q, v = layer.attention.q, layer.attention.v
        pattern, z, post = layer.attention.pattern, layer.attention.z, layer.resid_post
        loss = model.unembed.output.pow(2).sum()
        with loss.backward():
            found = [post.grad.clone(), z.grad.clone(), pattern.grad.clone()]
            found += [v.grad.clone(), q.grad.clone()]
    kept = {}

    def keep(which):
        def hook(value):
            kept[which] = value
            value.retain_grad()
            return value

        return hook

    base = f"{oracle.layer(0)}.{oracle.attention}"
    changes = [
        (f"{base}.{oracle.q}", keep("q"), "output"), (f"{base}.{oracle.v}", keep("v"), "output"),
        (f"{base}.{oracle.out}", keep("z"), "input"),
    ]  # fmt: skip
    out = run(net, name, changes, output_attentions=True, output_hidden_states=True)
    out.attentions[0].retain_grad()
    out.hidden_states[1].retain_grad()
    out.logits.pow(2).sum().backward()
    net.zero_grad()
    expected = [out.hidden_states[1].grad, by_head(kept["z"].grad), out.attentions[0].grad]
    expected += [split(name, kept["v"].grad, 2), split(name, kept["q"].grad, 0)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
        assert one.abs().sum() > 0


@pytest.mark.parametrize("name", each(LOCAL))
def test_gradients_flow_through_a_stream_that_was_replaced(name):
    net = FAMILIES[name].build()
    net.requires_grad_(True)
    model = LanguageModel(net)
    scale = torch.ones(32, requires_grad=True)
    with model.trace(**given(name)):
        mid = model.layers[0].resid_mid
        model.layers[0].resid_mid = mid * scale
        loss = model.unembed.output.pow(2).sum()
        found = torch.autograd.grad(loss, [scale, mid])
    assert torch.isfinite(found[0]).all()
    step = 1e-2
    bumped = []
    for sign in (1, -1):
        with torch.no_grad(), model.trace(**given(name)):
            model.layers[0].resid_mid[..., 3] *= 1 + sign * step
            bumped.append(model.unembed.output.double().pow(2).sum())
    slope = (bumped[0] - bumped[1]) / (2 * step)
    torch.testing.assert_close(found[0][3].double(), slope, rtol=2e-2, atol=0.5)


def test_an_edit_may_write_standard_names(noise):
    model = wrapped("llama")
    with model.edit() as edited:
        model.layers[0].resid_mid = model.layers[0].resid_mid + noise
        model.layers[1].attention.pattern[:, 0] = 0
    with model.trace(IDS):
        model.layers[0].resid_mid = model.layers[0].resid_mid + noise
        model.layers[1].attention.pattern[:, 0] = 0
        expected = model.unembed.output.clone()
    for _ in range(2):
        assert torch.equal(edited.trace(IDS).logits, expected)
    assert not torch.equal(model.trace(IDS).logits, expected)


def test_edits_of_a_file_know_standard_names_and_what_a_model_lacks(tmp_path, noise):
    model = wrapped("llama")
    with model.edit() as edited:
        model.layers[0].attention.pattern[:, 0] = 0
        model.layers[0].resid_mid = model.layers[0].resid_mid + noise
    file = edited.save_edits(tmp_path / "edits.safetensors")
    again = LanguageModel(FAMILIES["llama"].built()).load_edits(file)
    assert torch.equal(again.trace(IDS).logits, edited.trace(IDS).logits)
    with pytest.raises(insitu.EditsFileError, match="has no model"):
        LanguageModel(FAMILIES["mamba"].built()).load_edits(file)


def test_a_stream_is_replaced_while_operations_of_its_layer_are_read(llm, noise):
    prompt = [3, 14, 15, 9, 2, 6]
    with llm.trace(prompt):
        source = llm.layers[0].source
        added = source.assign_hidden_states_0.output.clone()
        llm.layers[0].resid_mid = llm.layers[0].resid_mid + noise
        both = source.assign_hidden_states_2.output.clone()
    with llm.trace(prompt):
        mlp = llm._module.transformer.h[0].mlp(
            llm._module.transformer.h[0].ln_2(llm.layers[0].resid_mid + noise)
        )
    assert torch.equal(both, added + noise + mlp)


def test_a_value_that_does_not_fit_is_refused_under_its_standard_name(llm):
    prompt = "The Eiffel Tower is in"
    for owner, value, says in (
        ("layer", "resid_mid", r"written to transformer\.h\.1\.resid_mid does not fit: shape"),
        ("layer", "resid_post", r"written to transformer\.h\.1\.resid_post does not fit: shape"),
        ("attention", "q", r"written to transformer\.h\.1\.attn\.q does not fit: shape"),
        ("attention", "z", r"written to transformer\.h\.1\.attn\.z does not fit: shape"),
        ("attention", "pattern", r"written to transformer\.h\.1\.attn\.pattern.* does not fit"),
    ):
        with pytest.raises(insitu.WriteError, match=says), llm.trace(prompt):
            layer = llm.layers[1]
            at = layer if owner == "layer" else layer.attention
            setattr(at, value, getattr(at, value)[:, :2])


def test_a_stream_that_no_name_of_the_layer_holds_is_not_replaced(llm):
    block = llm._module.transformer.h[1]

    def forward(hidden_states, *given, **settings):
        return block.mlp(block.ln_2(hidden_states.clone())) + hidden_states.clone()

    block.forward = forward
    try:
        with pytest.raises(insitu.WriteError, match="cannot be replaced") as caught:
            with llm.trace("The Eiffel Tower is in"):
                llm.layers[1].resid_mid = llm.layers[1].resid_mid * 2
        assert "[:] = value" in caught.value.next
    finally:
        del block.forward
