"""Operations of transformers' attention, against what hooks and the models themselves say."""

import pytest
import reference
import torch
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)  # fmt: skip

from insitu import NeverRanError, NNsight, OutOfOrderError

SIZES = {"vocab_size": 50, "attention_dropout": 0.0}
WIDE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
IDS = torch.tensor([[3, 14, 15, 9, 2, 6]])


def gpt2(kind):
    config = GPT2Config(
        n_layer=2, n_embd=32, n_head=4, vocab_size=50, n_positions=32, attn_implementation=kind,
        bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def llama(kind):
    return LlamaForCausalLM(
        LlamaConfig(**SIZES, **WIDE, **ENDS, num_key_value_heads=2, attn_implementation=kind)
    )


def qwen2(kind):
    return Qwen2ForCausalLM(
        Qwen2Config(**SIZES, **WIDE, **ENDS, num_key_value_heads=2, attn_implementation=kind)
    )


def bert(kind):
    return BertModel(BertConfig(vocab_size=50, **WIDE, attn_implementation=kind))


def t5(kind):
    config = T5Config(
        vocab_size=50, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, dropout_rate=0.0,
        decoder_start_token_id=0, eos_token_id=0, pad_token_id=0, attn_implementation=kind,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


ATTENTION = {
    gpt2: ("transformer.h.1.attn", "c_proj"),
    llama: ("model.layers.1.self_attn", "o_proj"),
    qwen2: ("model.layers.1.self_attn", "o_proj"),
    bert: ("encoder.layer.1.attention.self", None),
    t5: ("decoder.block.1.layer.0.SelfAttention", "o"),
}


@pytest.fixture(scope="module")
def built():
    made = {}

    def build(family, kind):
        if (family, kind) not in made:
            torch.manual_seed(0)
            net = family(kind).eval().requires_grad_(False)
            for weight in net.parameters():  # spread them, so that a change inside shows
                weight.mul_(4 if weight.dim() > 1 else 1)
            made[family, kind] = net
        return made[family, kind]

    return build


@pytest.fixture(params=["eager", "sdpa"])
def kind(request):
    return request.param


@pytest.fixture(params=ATTENTION, ids=lambda family: family.__name__)
def family(request):
    return request.param


@pytest.fixture
def net(built, family, kind):
    return built(family, kind)


@pytest.fixture
def given(family):
    return {"input_ids": IDS, **({"decoder_input_ids": IDS} if family is t5 else {})}


@pytest.fixture
def attention(net, family):
    return NNsight(net), ATTENTION[family][0]


def result(out):
    return out.last_hidden_state if hasattr(out, "last_hidden_state") else out.logits


def test_every_operation_that_runs_can_be_read_and_leaves_the_bits_alone(net, attention, given):
    model, path = attention
    bare = result(net(**given))
    with model.trace(**given) as tracer:
        node = model[path]
        last = node.source[len(node.source) - 1]
        last.output
        out = tracer.result
    assert torch.equal(result(out), bare)
    ran = []
    for operation in node.source:
        try:
            with model.trace(**given) as tracer:
                operation.output
                out = tracer.result
        except NeverRanError:  # a branch that this model does not take
            continue
        ran.append(operation._name)
        assert torch.equal(result(out), bare), operation._name
    assert "attention_interface_0" in ran
    assert len(ran) > 10


def test_attention_interface_gives_what_the_projection_gets(net, family, attention, given):
    model, path = attention
    projection = ATTENTION[family][1]
    with model.trace(**given):
        heads = model[path].source.attention_interface_0.output[0]
        if projection is not None:
            projected = getattr(model[path].source, f"self_{projection}_0").output
        attn = model[path].output[0]
    if projection is None:
        assert torch.equal(heads.flatten(-2), attn)
        return
    inside = f"{path}.{projection}"
    ((args, _),) = reference.inputs(net, [inside], call=lambda: net(**given))[inside]
    (module,) = reference.outputs(net, [inside], call=lambda: net(**given))[inside]
    assert torch.equal(heads.flatten(-2), args[0])
    assert torch.equal(projected, module)
    assert torch.equal(projected, attn)


def test_the_softmax_gives_the_attention_weights(built, family, given):
    net = built(family, "eager")
    model, path = NNsight(net), ATTENTION[family][0]
    told = net(**given, output_attentions=True)
    weights = (told.decoder_attentions if family is t5 else told.attentions)[1]
    with model.trace(**given):
        inner = model[path].source.attention_interface_0.source
        scores = inner.nn_functional_softmax_0.input
        pattern = inner.nn_functional_softmax_0.output
        after = inner.nn_functional_dropout_0.output
        returned = model[path].source.attention_interface_0.output[1]
    assert torch.equal(pattern, torch.softmax(scores, -1))
    assert torch.equal(after, weights)
    assert torch.equal(returned, weights)


def test_a_head_ablated_in_the_attention_is_one_ablated_before_the_projection(
    net, family, attention, given
):
    model, path = attention
    with model.trace(**given) as tracer:
        model[path].source.attention_interface_0.output[0][:, :, 1] = 0
        out = result(tracer.result)

    def ablate(module, args):
        heads = args[0].unflatten(-1, (4, 8)).clone()
        heads[:, :, 1] = 0
        return (heads.flatten(-2),)

    def ablate_output(module, args, output):
        heads = output[0].unflatten(-1, (4, 8)).clone()
        heads[:, :, 1] = 0
        return (heads.flatten(-2), *output[1:])

    projection, module = ATTENTION[family][1], net.get_submodule(path)
    if projection is None:
        handle = module.register_forward_hook(ablate_output)
    else:
        handle = getattr(module, projection).register_forward_pre_hook(ablate)
    with reference.hooks([handle]):
        expected = result(net(**given))
    assert torch.equal(out, expected)
    assert not torch.equal(out, result(net(**given)))


def test_attention_made_uniform_gives_the_mean_of_the_values(built, given):
    net = built(gpt2, "eager")
    model, path = NNsight(net), ATTENTION[gpt2][0]
    with model.trace(**given):
        operation = model[path].source.attention_interface_0
        weighted = operation.source.torch_matmul_1
        (weights, values), _ = weighted.inputs
        weighted.inputs = (torch.full_like(weights, 1 / 6), values), {}
        heads = operation.output[0]
    expected = values.mean(2, keepdim=True).expand_as(values).transpose(1, 2)
    assert torch.allclose(heads, expected, atol=1e-4)


PROMPT = "Once upon a time"


@pytest.mark.parametrize("passes_before", [0, 1])
def test_operations_are_met_in_every_step_of_a_generation(llm, passes_before):
    def generate():
        return llm._module.generate(
            **llm.tokenizer(PROMPT, return_tensors="pt"), max_new_tokens=4, do_sample=False
        )

    inside = "transformer.h.1.attn.c_proj"
    expected = reference.outputs(llm._module, [inside], call=generate)[inside]
    for _ in range(passes_before):
        with llm.generate(PROMPT, max_new_tokens=2):
            pass
    seen, heads = [], []
    with llm.generate(PROMPT, max_new_tokens=4) as tracer:
        for _ in tracer.iter[:]:
            source = llm.transformer.h[1].attn.source
            heads.append(source.attention_interface_0.output[0])
            seen.append(source.self_c_proj_0.output)
        ids = llm.generator.output
    assert torch.equal(ids, generate())
    assert len(seen) == len(expected) == 4
    assert all(map(torch.equal, seen, expected))
    for head, out in zip(heads, seen, strict=True):
        assert torch.equal(llm._module.transformer.h[1].attn.c_proj(head.flatten(-2)), out)


def test_one_step_of_a_generation_is_edited(llm):
    inside, calls = "transformer.h.1.attn.c_proj", []

    def zero_in_second(out, call):
        calls.append(call)
        return torch.zeros_like(out) if call == 1 else None

    encoded = llm.tokenizer(PROMPT, return_tensors="pt")
    with torch.no_grad():
        expected = reference.edited(
            llm._module, {inside: zero_in_second}, max_new_tokens=4, do_sample=False,
            call=llm._module.generate, **encoded,
        )  # fmt: skip
    with llm.generate(PROMPT, max_new_tokens=4) as tracer:
        for _ in tracer.iter[1]:
            llm.transformer.h[1].attn.source.self_c_proj_0.output[:] = 0
        ids = llm.generator.output
    assert torch.equal(ids, expected)


def test_an_operation_missed_in_its_step_is_an_order_error(llm):
    with pytest.raises(OutOfOrderError, match="has already passed it in step 1"):
        with llm.generate(PROMPT, max_new_tokens=4) as tracer:
            for _ in tracer.iter[1]:
                llm.transformer.h[1].attn.source.self_c_proj_0.output
                llm.transformer.h[1].attn.source.attention_interface_0.output
