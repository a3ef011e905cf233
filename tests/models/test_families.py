"""Families x features: every family of models gives what plain hooks give, feature by feature.

`python tools/family_matrix.py` runs this file and writes docs/families.md, a column per entry of
FEATURES in tests/families.py.
"""

import importlib.util
from pathlib import Path

import pytest
import reference
import torch
from families import ENCODER, FAMILIES, HEADS, SEQ2SEQ, Family

from insitu import LanguageModel

IDS = torch.tensor([[3, 14, 15, 9, 2, 6]])
NEW = 4
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
WITH_KINDS = [(name, kind) for name, it in FAMILIES.items() for kind in it.kinds or ("no kinds",)]


@pytest.fixture(params=FAMILIES)
def family(request) -> Family:
    return FAMILIES[request.param]


@pytest.fixture
def net(family):
    return family.built()


@pytest.fixture
def model(net, tiny_gpt2):
    return LanguageModel(net, tokenizer=tiny_gpt2[1])


@pytest.fixture
def given(family):
    return family.given(IDS)


@pytest.fixture
def generating(family):
    if not family.generates:
        pytest.skip(f"{family.model} is an encoder: it does not generate")
    return family


def copied(value):
    """The tensors of a value, as they are now; everything else is left out."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: copied(part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [copied(part) for part in value]
    return None


def same(one, other):
    """Whether two copies are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one is other is None


def hooked(net, given, *, inputs=False):
    """By plain hooks: of each module that ran, in order, what its calls gave (or were given)."""
    seen = {}

    def note(path):
        def after(module, args, out):
            seen.setdefault(path, []).append(copied(out))

        def before(module, args, kwargs):
            seen.setdefault(path, []).append(copied((args, kwargs)))

        return before if inputs else after

    handles = [
        module.register_forward_pre_hook(note(path), with_kwargs=True)
        if inputs
        else module.register_forward_hook(note(path))
        for path, module in net.named_modules()
    ]
    with reference.hooks(handles), torch.no_grad():
        net(**given)
    return seen


def first(value):
    """The hidden states of what a layer returned."""
    return value[0] if isinstance(value, tuple) else value


def with_first(value, hidden):
    return (hidden, *value[1:]) if isinstance(value, tuple) else hidden


def bare(family, net, given):
    with torch.no_grad():
        return family.result(net(**given))


def edited(family, net, given, change):
    """The result by plain hooks, with the first layer's hidden states changed."""
    edits = {family.layer: lambda out, call: with_first(out, change(first(out)))}
    with torch.no_grad():
        return family.result(reference.edited(net, edits, **given))


def test_every_modules_output_is_that_of_plain_hooks(net, model, given):
    expected, seen = hooked(net, given), {}
    with model.trace(**given):
        for path in expected:
            seen[path] = copied((model[path] if path else model).output)
    assert len(seen) > 10
    assert [path for path in expected if not same(expected[path][0], seen[path])] == []


def test_every_modules_inputs_are_those_of_plain_hooks(net, model, given):
    expected, seen = hooked(net, given, inputs=True), {}
    with model.trace(**given):
        for path in expected:
            seen[path] = copied((model[path] if path else model).inputs)
    assert [path for path in expected if not same(expected[path][0], seen[path])] == []


def test_an_edit_in_place_is_that_of_a_hook(family, net, model, given):
    def double(hidden):
        hidden[:, 1] *= 2
        return hidden

    expected = edited(family, net, given, double)
    with model.trace(**given) as tracer:
        first(model[family.layer].output)[:, 1] *= 2
        out = family.result(tracer.result)
    assert torch.equal(out, expected)
    assert not torch.allclose(out, bare(family, net, given))


def test_an_output_replaced_is_one_replaced_by_a_hook(family, net, model, given):
    expected = edited(family, net, given, lambda hidden: hidden.flip(1) * 0.5)
    with model.trace(**given) as tracer:
        out = model[family.layer].output
        model[family.layer].output = with_first(out, first(out).flip(1) * 0.5)
        out = family.result(tracer.result)
    assert torch.equal(out, expected)
    assert not torch.allclose(out, bare(family, net, given))


def test_a_layer_skipped_is_one_whose_output_is_its_input(family, net, model, given):
    path = family.layer
    ((args, kwargs),) = reference.inputs(net, [path], **given)[path]
    hidden = (*args, *kwargs.values())[0]
    expected = edited(family, net, given, lambda out: hidden)
    with model.trace(**given):
        others = model[path].output
    with model.trace(**given) as tracer:
        model[path].skip(with_first(others, model[path].input))
        out = family.result(tracer.result)
    assert torch.equal(out, expected)
    assert not torch.allclose(out, bare(family, net, given))


def test_a_generation_gives_the_ids_and_steps_of_transformers(generating, net, model):
    def generate():
        return net.generate(IDS, max_new_tokens=NEW)

    path, seen = generating.layer, []
    expected = reference.outputs(net, [path], call=generate)[path]
    with model.generate(IDS, max_new_tokens=NEW) as tracer:
        for _ in tracer.iter[:]:
            seen.append(copied(first(model[path].output)))
        ids = model.generator.output
    assert torch.equal(ids, generate())
    assert len(seen) == len(expected) == NEW
    assert all(torch.equal(a, first(b)) for a, b in zip(seen, expected, strict=True))


def test_an_edit_in_one_step_of_a_generation_is_that_of_a_hook(generating, net, model):
    def zero_in_second(out, call):
        return with_first(out, torch.zeros_like(first(out))) if call == 1 else None

    path = generating.layer
    settings = {"max_new_tokens": NEW, "output_logits": True, "return_dict_in_generate": True}
    expected = reference.edited(
        net, {path: zero_in_second}, IDS, call=net.generate, **settings
    ).logits  # fmt: skip
    with model.generate(IDS, **settings) as tracer:
        for _ in tracer.iter[1]:
            first(model[path].output)[:] = 0
        out = tracer.result
    assert len(out.logits) == len(expected) == NEW
    assert all(map(torch.equal, out.logits, expected))
    unchanged = net.generate(IDS, **settings).logits
    assert not torch.allclose(unchanged[1], expected[1])


def test_a_cache_of_all_modules_holds_what_plain_hooks_see(net, model, given):
    expected = hooked(net, given)
    with model.trace(**given) as tracer:
        cache = tracer.cache(clone=True)  # falcon and t5 add in place
    assert len(cache) == len(expected) > 10
    for path, values in expected.items():
        kept = cache[f"model.{path}".rstrip(".")]
        kept = [call.output for call in kept] if len(values) > 1 else [kept.output]
        assert all(same(copied(a), copied(b)) for a, b in zip(kept, values, strict=True)), path


# Operations ------------------------------------------------------------------------------------


@pytest.fixture(params=WITH_KINDS, ids=lambda both: "-".join(both))
def family_and_kind(request):
    name, kind = request.param
    return FAMILIES[name], kind if FAMILIES[name].kinds else None


def attended(query, key, value, mask, options):
    """Attention as papers write it: [batch, head, pos, d_head] to [batch, pos, head, d_head]."""
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * options["scaling"]
    if options.get("softcap") is not None:
        scores = torch.tanh(scores / options["softcap"]) * options["softcap"]
    if options.get("position_bias") is not None:
        scores = scores + options["position_bias"]
    if mask is not None:
        hidden = ~mask if mask.dtype == torch.bool else mask < -1e30
        scores = scores.masked_fill(hidden, -torch.inf)
        scores = scores if mask.dtype == torch.bool else scores + mask.masked_fill(hidden, 0)
    elif options["causal"]:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    return torch.einsum("bhqk,bhkd->bqhd", scores.softmax(-1), value)


def scanned(inputs):
    """Mamba's recurrence, token by token, [batch, d_inner, pos]."""
    (x, step, a, b, c), options = inputs
    step = torch.nn.functional.softplus(step + options["delta_bias"][:, None])
    state, out = torch.zeros(*x.shape[:2], a.shape[1]), []
    for at in range(x.shape[-1]):
        decay = torch.exp(step[..., at, None] * a)
        state = decay * state + (step * x)[..., at, None] * b[:, None, :, at]
        out.append((state * c[:, None, :, at]).sum(-1) + options["D"] * x[..., at])
    return torch.stack(out, -1) * torch.nn.functional.silu(options["z"])


def own_attention(family, kind, source):
    """What the operation gives, and an own computation of it from the operations before."""
    if family.name == "mamba":
        scan = source.mamba_selective_scan_0
        inputs, (out, *_) = scan.inputs, scan.output
        return out.transpose(1, 2), scanned(inputs).transpose(1, 2)
    if family.name == "bloom":
        probabilities = source.F_softmax_0.input.softmax(-1)
        _, values = source.torch_bmm_0.inputs[0]
        own = torch.einsum("bhqk,bhkd->bqhd", probabilities, values.unflatten(0, (-1, HEADS)))
        return source.self__merge_heads_0.output, own.flatten(2)
    if family.name == "falcon" and kind == "sdpa":
        call = source.torch_nn_functional_scaled_dot_product_attention_0
        (q, k, v), options = call.inputs
        own = {"scaling": 8**-0.5, "causal": options["is_causal"]}
        own = attended(q, k, v, options["attn_mask"], own)
        return source.attn_output_reshape_0.output, own.flatten(2)
    if family.name == "falcon":
        v = source.reshape_2.output
        q, k = source.apply_rotary_pos_emb_0.output
        own = attended(q, k, v, None, {"scaling": 8**-0.5, "causal": True})
        return source.attn_output_reshape_0.output, own.flatten(2)
    call = source.attention_interface_0
    (_, q, k, v, mask), options = call.inputs
    causal = family.kind != ENCODER
    own = {**options, "causal": causal}
    if kind == "sdpa":  # transformers drops Gemma 2's soft cap there
        own["softcap"] = None
    own = attended(q, k, v, mask, own)
    return call.output[0].flatten(2), own.flatten(2)


def test_the_operation_of_attention_is_the_attention(family_and_kind, tiny_gpt2):
    family, kind = family_and_kind
    net = family.built(kind)
    model, given = LanguageModel(net, tokenizer=tiny_gpt2[1]), family.given(IDS)
    expected = bare(family, net, given)
    with model.trace(**given) as tracer:
        out, own = own_attention(family, kind, model[family.attention].source)
        result = family.result(tracer.result)
    torch.testing.assert_close(out, own, **CLOSE)
    assert torch.equal(result, expected)
    if family.projection:
        path = f"{family.attention}.{family.projection}"
        ((args, _),) = reference.inputs(net, [path], **given)[path]
    else:
        args = reference.outputs(net, [family.attention], **given)[family.attention][0]
    assert torch.equal(out, args[0])


def test_a_head_ablated_at_the_operation_is_one_ablated_before_the_projection(
    family, net, model, given
):
    def ablate(heads):
        heads = heads.clone()
        heads[..., 8:16] = 0  # the second head; mamba's channels 8 to 15
        return heads

    if family.projection:
        projection = net.get_submodule(f"{family.attention}.{family.projection}")
        handle = projection.register_forward_pre_hook(lambda m, args: (ablate(args[0]),))
    else:
        attention = net.get_submodule(family.attention)
        handle = attention.register_forward_hook(
            lambda m, args, out: with_first(out, ablate(first(out)))
        )
    with reference.hooks([handle]):
        expected = bare(family, net, given)
    with model.trace(**given) as tracer:
        out = getattr(model[family.attention].source, family.operation).output
        if family.name == "mamba":
            out[0][:, 8:16] = 0
        elif isinstance(out, tuple):
            out[0][:, :, 1] = 0
        else:
            out[..., 8:16] = 0
        result = family.result(tracer.result)
    assert torch.equal(result, expected)
    assert not torch.allclose(result, bare(family, net, given))


# Gradients, batches, scans, edits -----------------------------------------------------------------


def test_the_gradient_of_a_loss_at_a_layer_is_autograds(family, net, model, given):
    kept = []

    def watch(module, args, out):
        kept.append(first(out).requires_grad_())

    with reference.hooks([net.get_submodule(family.layer).register_forward_hook(watch)]):
        loss = family.result(net(**given)).logsumexp(-1).sum()
    (expected,) = torch.autograd.grad(loss, kept)
    with model.trace(**given) as tracer:
        hidden = first(model[family.layer].output).requires_grad_()
        loss = family.result(tracer.result).logsumexp(-1).sum()
        with loss.backward():
            grad = hidden.grad
    assert torch.equal(grad, expected)
    assert grad.abs().max() > 1e-3


LONG, SHORT = [3, 14, 15, 9, 2, 6, 53], [58, 97, 9]
STARTS = [[0, 11, 12], [0, 17, 19]]


def prompts(family):
    """Two prompts of unequal length; what is decoded is as long in both."""
    for ids, start in zip((LONG, SHORT), STARTS, strict=True):
        given = {"input_ids": torch.tensor([ids])}
        yield given | (
            {"decoder_input_ids": torch.tensor([start])} if family.kind == SEQ2SEQ else {}
        )


def real(family, value, length):
    """A row's own positions: an encoder's are padded on the right, others on the left."""
    return value[:, :length] if family.kind == ENCODER else value[:, value.shape[1] - length :]


def test_invokes_of_unequal_prompts_equal_single_runs(family, net, model):
    path, alone = family.layer, []
    for given in prompts(family):
        (hidden,) = reference.outputs(net, [path], **given)[path]
        alone.append((first(hidden), bare(family, net, given)))
    rows = []
    with model.trace() as tracer:
        for given in prompts(family):
            with tracer.invoke(**given):
                hidden = first(model[path].output)
                rows.append((hidden, family.result(tracer.result)))
    for (hidden, out), (own_hidden, own_out) in zip(rows, alone, strict=True):
        assert hidden.shape[0] == out.shape[0] == 1
        torch.testing.assert_close(real(family, hidden, own_hidden.shape[1]), own_hidden, **CLOSE)
        torch.testing.assert_close(real(family, out, own_out.shape[1]), own_out, **CLOSE)


def test_an_edit_in_one_invoke_leaves_the_other_alone(family, net, model):
    at = 0 if family.kind == ENCODER else -1

    def double(hidden):
        hidden[:, at] *= 2
        return hidden

    first_prompt, second_prompt = prompts(family)
    expected = edited(family, net, second_prompt, double), bare(family, net, first_prompt)
    with model.trace() as tracer:
        with tracer.invoke(**first_prompt):
            untouched = family.result(tracer.result)
        with tracer.invoke(**second_prompt):
            first(model[family.layer].output)[:, at] *= 2
            changed = family.result(tracer.result)
    for out, own in zip((changed, untouched), expected, strict=True):
        torch.testing.assert_close(real(family, out, own.shape[1]), own, **CLOSE)


def shapes(value):
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, dict):
        return {key: shapes(part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [shapes(part) for part in value]
    return None


def test_a_scan_gives_the_shapes_of_a_real_pass(net, model, given):
    expected, seen = hooked(net, given), {}
    with model.scan(**given):
        for path in expected:
            seen[path] = shapes((model[path] if path else model).output)
    assert seen == {path: shapes(calls[0]) for path, calls in expected.items()}


def test_an_edit_stays_for_every_later_pass_and_leaves_the_model_alone(family, net, model, given):
    def double(hidden):
        hidden[:, 1] *= 2
        return hidden

    expected, unchanged = edited(family, net, given, double), bare(family, net, given)
    with model.edit() as changed:
        first(changed[family.layer].output)[:, 1] *= 2
    for _ in range(2):
        with changed.trace(**given) as tracer:
            out = family.result(tracer.result)
        assert torch.equal(out, expected)
    with model.trace(**given) as tracer:
        out = family.result(tracer.result)
    assert torch.equal(out, unchanged)


def test_a_value_of_one_trace_is_used_in_the_next_one_of_a_session(family, net, model, given):
    other = family.given(IDS.flip(1))
    (donor,) = reference.outputs(net, [family.layer], **other)[family.layer]
    expected = edited(family, net, given, lambda hidden: first(donor))
    with model.session():
        with model.trace(**other):
            hidden = first(model[family.layer].output)
        with model.trace(**given) as tracer:
            first(model[family.layer].output)[:] = hidden
            out = family.result(tracer.result)
    assert torch.equal(out, expected)
    assert not torch.allclose(out, bare(family, net, given))


def test_a_renamed_list_of_layers_is_the_same_one(family, net, tiny_gpt2, given):
    model = LanguageModel(net, tokenizer=tiny_gpt2[1], rename={family.layers: "blocks"})
    (expected,) = reference.outputs(net, [family.layer], **given)[family.layer]
    with model.trace(**given):
        hidden = first(model.blocks[0].output)
    assert torch.equal(hidden, first(expected))


def test_experts_that_run_one_by_one_are_operations():
    family = FAMILIES["mixtral"]
    net, given = family.build(experts_implementation="eager"), family.given(IDS)
    model, path, seen = LanguageModel(net), "model.layers.0.mlp.experts", []
    ((args, _),) = reference.inputs(net, [path], **given)[path]
    hidden, chosen, weights = args
    own = torch.zeros_like(hidden)
    with model.trace(**given) as tracer:
        for _ in tracer.iter[:]:
            seen.append(model[path].source.nn_functional_linear_1.output)
    experts = model[path]._module
    for expert, out in zip(chosen.unique(), seen, strict=True):
        tokens, place = torch.where(chosen == expert)
        gate, up = (hidden[tokens] @ experts.gate_up_proj[expert].T).chunk(2, -1)
        expected = (torch.nn.functional.silu(gate) * up) @ experts.down_proj[expert].T
        order = out.sum(-1).argsort(), expected.sum(-1).argsort()  # tokens come by their place
        torch.testing.assert_close(out[order[0]], expected[order[1]], **CLOSE)
        own.index_add_(0, tokens, expected * weights[tokens, place, None])
    (result,) = reference.outputs(net, [path], **given)[path]
    torch.testing.assert_close(own, result, **CLOSE)


def test_the_document_lists_these_families_and_features():
    place = Path(__file__).parents[2] / "tools" / "family_matrix.py"
    spec = importlib.util.spec_from_file_location("tools_families", place)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    text = tool.PAGE.read_text()
    assert tool.stale(text) == []
    assert tool.stale(text.replace("| gpt2 |", "| gpt3 |")) != []
    assert tool.NO not in text.split("equal,")[0]
