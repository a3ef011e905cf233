"""A padded row gives the numbers of the row alone, whatever a model makes of positions."""

import pytest
import torch
import transformers
from families import FAMILIES, VOCAB

import insitu
from insitu import LanguageModel
from insitu.models import padding

LONG, SHORT = "The Eiffel Tower is in the city of", "Once upon"
_IDS = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_NEO = {"attention_types": [[["global", "local"], 1]]}
_WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_FULL = {**_WIDE, "intermediate_size": 48}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}

FURTHER = {
    "bloom": ("BloomForCausalLM", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "falcon with ALiBi": ("FalconForCausalLM", {**_WIDE, "alibi": True}),
    "mpt": ("MptForCausalLM", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
    "gptj": ("GPTJForCausalLM", {**_GPT, "rotary_dim": 4}),
    "gpt_neo": ("GPTNeoForCausalLM", {"hidden_size": 32, "num_layers": 2, "num_heads": 4, **_NEO}),
    "biogpt": ("BioGptForCausalLM", {**_FULL, "max_position_embeddings": 64}),
    "roberta": ("RobertaForMaskedLM", {**_FULL, "max_position_embeddings": 66}),
    "bart": (
        "BartForConditionalGeneration",
        {
            "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
            "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
            "max_position_embeddings": 64, "decoder_start_token_id": 0,
        },
    ),
}  # fmt: skip
ALL = [*FAMILIES, *FURTHER]
ON_THE_RIGHT = {"bert", "t5", "roberta", "bart"}


def build(name):
    if name in FAMILIES:
        return FAMILIES[name].build()
    cls, sizes = FURTHER[name]
    kind = getattr(transformers, cls)
    torch.manual_seed(0)
    return kind(kind.config_class(**sizes, **_IDS)).eval().requires_grad_(False)


@pytest.fixture(params=ALL)
def padder(request, tiny_gpt2):
    return LanguageModel(build(request.param), tokenizer=tiny_gpt2[1]), request.param


def numbers(out):
    return out.logits if getattr(out, "logits", None) is not None else out[0]


def own_part(rows, length, side):
    return rows[-length:] if side == "left" else rows[:length]


def test_rows_of_a_batch_and_of_invokes_give_the_numbers_of_single_runs(padder):
    model, name = padder
    side = "right" if name in ON_THE_RIGHT else "left"
    assert model._kind.padding_side == model.tokenizer.padding_side == side
    alone = [numbers(model(text))[0] for text in (LONG, SHORT)]
    together = numbers(model([LONG, SHORT]))
    with model.trace() as tracer:
        with tracer.invoke(LONG):
            first = numbers(model.output)[0]
        with tracer.invoke(SHORT):
            second = numbers(model.output)[0]
    for row, invoked, single in zip(together, (first, second), alone, strict=True):
        for rows in (row, invoked):
            torch.testing.assert_close(
                own_part(rows, len(single), side), single, rtol=1e-4, atol=1e-5
            )


def test_rows_of_unequal_length_generate_what_they_generate_alone(padder):
    model, _ = padder
    if not model._module.can_generate():
        pytest.skip("an encoder does not generate")
    how = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    with model.generate([LONG, SHORT], **how):
        together = model.generator.output
    for row, text in enumerate((LONG, SHORT)):
        with model.generate(text, **how):
            alone = model.generator.output
        assert torch.equal(together[row, -3:], alone[0, -3:])


def test_a_model_that_ignores_its_mask_is_not_given_padding(tiny_gpt2):
    torch.manual_seed(0)
    config = transformers.RwkvConfig(
        hidden_size=32, num_hidden_layers=2, attention_hidden_size=32, context_length=64, **_IDS
    )
    model = LanguageModel(transformers.RwkvForCausalLM(config).eval(), tokenizer=tiny_gpt2[1])
    with pytest.raises(insitu.InputError, match=r"(?s)unequal lengths.*read the padding as text"):
        model.trace([LONG, SHORT])
    assert model([SHORT, SHORT]).logits.shape[0] == 2


def test_a_model_inside_peft_is_padded_as_the_model_is(tiny_gpt2):
    peft = pytest.importorskip("peft")
    net = FAMILIES["gpt2"].build()
    wrapped = peft.get_peft_model(
        net, peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)
    ).eval()
    model = LanguageModel(wrapped, tokenizer=tiny_gpt2[1])
    alone = model(SHORT).logits[0]
    together = model([LONG, SHORT]).logits[1, -len(alone) :]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


# The plan, without a model -----------------------------------------------------------------------


def ids(*values):
    return torch.tensor([values])


def test_a_prompt_is_padded_at_its_side_and_a_decoder_on_the_right():
    batches = [
        {"input_ids": ids(1, 2, 3), "decoder_input_ids": ids(7), "labels": ids(5)},
        {"input_ids": ids(4), "decoder_input_ids": ids(8, 9), "labels": ids(6, 6)},
    ]
    batch, rows = padding.padded(batches, 0, "right", has_decoder=True)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["decoder_input_ids"].tolist() == [[7, 0], [8, 9]]
    assert batch["decoder_attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert batch["labels"].tolist() == [[5, -100], [6, 6]]
    assert [(row.start, row.size) for row in rows] == [(0, 1), (1, 1)]


def test_a_causal_model_s_labels_are_padded_with_its_prompt():
    batches = [
        {"input_ids": ids(1, 2), "labels": ids(1, 2)},
        {"input_ids": ids(4), "labels": ids(4)},
    ]
    batch, _ = padding.padded(batches, 9)
    assert batch["input_ids"].tolist() == [[1, 2], [9, 4]]
    assert batch["labels"].tolist() == [[1, 2], [-100, 4]]


def test_positions_count_from_the_first_real_token():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    assert padding.positions(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]


def test_without_a_pad_token_unequal_rows_say_so():
    with pytest.raises(insitu.InputError, match=r"1 to 2 tokens, and there is no pad token"):
        padding.padded([{"input_ids": ids(1, 2)}, {"input_ids": ids(1)}], None)


def test_an_input_that_one_invoke_lacks_is_named():
    batches = [{"input_ids": ids(1), "labels": ids(1)}, {"input_ids": ids(2)}]
    with pytest.raises(insitu.InputError, match="labels was given to some invokes"):
        padding.padded(batches, 0)
    with pytest.raises(insitu.InputError, match="labels was given to some invokes"):
        padding.padded(batches[::-1], 0)


def test_inputs_that_do_not_join_are_named():
    one, two = torch.zeros(1, 2, 4), torch.zeros(1, 2, 5)
    with pytest.raises(insitu.InputError, match="inputs_embeds cannot be joined"):
        padding.padded([{"inputs_embeds": one}, {"inputs_embeds": two}], 0)
