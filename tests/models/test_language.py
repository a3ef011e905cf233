"""A language model takes text, ids or a tokenizer's output, and runs as transformers does."""

import pytest
import torch
import transformers

import insitu
from insitu import LanguageModel

PROMPT = "The Eiffel Tower is in the city of"
SHORT = "Once upon"


def logits_of(llm, *args, **kwargs):
    with llm.trace(*args, **kwargs):
        return llm.lm_head.output


def ids_of(llm, text=PROMPT):
    return llm.tokenizer(text)["input_ids"]


FORMS = {
    "text": lambda llm: ((PROMPT,), {}),
    "list of one text": lambda llm: (([PROMPT],), {}),
    "tuple of one text": lambda llm: (((PROMPT,),), {}),
    "ids": lambda llm: ((ids_of(llm),), {}),
    "nested ids": lambda llm: (([ids_of(llm)],), {}),
    "tensor": lambda llm: ((torch.tensor([ids_of(llm)]),), {}),
    "row": lambda llm: ((torch.tensor(ids_of(llm)),), {}),
    "encoding": lambda llm: ((llm.tokenizer(PROMPT, return_tensors="pt"),), {}),
    "dict": lambda llm: (({"input_ids": torch.tensor([ids_of(llm)])},), {}),
    "keyword": lambda llm: ((), {"input_ids": torch.tensor([ids_of(llm)])}),
    "keywords": lambda llm: ((), dict(llm.tokenizer(PROMPT, return_tensors="pt"))),
    "embeddings": lambda llm: (
        (),
        {"inputs_embeds": llm._module.transformer.wte(torch.tensor([ids_of(llm)]))},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_prompt_gives_the_same_numbers(llm, form):
    expected = llm._module(**llm.tokenizer(PROMPT, return_tensors="pt")).logits
    args, kwargs = FORMS[form](llm)
    torch.testing.assert_close(logits_of(llm, *args, **kwargs), expected)


@pytest.mark.parametrize("form", ["text", "ids", "tensor", "encoding", "keyword"])
def test_every_form_of_a_prompt_generates_the_same_tokens(llm, form):
    expected = llm._module.generate(**llm.tokenizer(PROMPT, return_tensors="pt"), max_new_tokens=3)
    args, kwargs = FORMS[form](llm)
    with llm.generate(*args, max_new_tokens=3, **kwargs):
        ids = llm.generator.output
    assert torch.equal(ids, expected)


@pytest.mark.parametrize("batch", [[PROMPT, SHORT], [SHORT, PROMPT, "The"]])
def test_a_padded_row_gives_the_numbers_of_the_row_alone(llm, batch):
    together = logits_of(llm, batch)
    ragged = logits_of(llm, [ids_of(llm, text) for text in batch])
    for row, text in enumerate(batch):
        alone = logits_of(llm, text)[0]
        torch.testing.assert_close(together[row, -len(alone) :], alone, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ragged[row, -len(alone) :], alone, rtol=1e-4, atol=1e-4)


def test_a_padded_row_generates_what_it_generates_alone(llm):
    with llm.generate([PROMPT, SHORT], max_new_tokens=4):
        together = llm.generator.output
    for row, text in enumerate([PROMPT, SHORT]):
        with llm.generate(text, max_new_tokens=4):
            alone = llm.generator.output
        assert torch.equal(together[row, -4:], alone[0, -4:])


def test_a_mask_of_the_users_is_kept(llm):
    ids, mask = (
        torch.tensor([[0, 0, *ids_of(llm)]]),
        torch.tensor([[0, 0, *[1] * len(ids_of(llm))]]),
    )
    padded = logits_of(llm, input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(padded[:, 2:], logits_of(llm, PROMPT), rtol=1e-4, atol=1e-4)


def test_settings_of_the_forward_pass_through(llm):
    with llm.trace(PROMPT, output_hidden_states=True, output_attentions=False) as tracer:
        out = tracer.result
    assert len(out.hidden_states) == 5
    with llm.trace(PROMPT, use_cache=False) as tracer:
        assert tracer.result.past_key_values is None


@pytest.mark.parametrize(
    "setting", [{"max_new_tokens": 3}, {"do_sample": True}, {"temperature": 0.5}, {"num_beams": 2}]
)
def test_a_setting_of_generation_on_a_trace_says_so(llm, setting):
    (name,) = setting
    with pytest.raises(insitu.UsageError, match=rf"(?s){name}.*model.generate\(prompt, {name}="):
        llm.trace(PROMPT, **setting)


def test_a_setting_that_no_forward_knows_is_refused_not_ignored(llm):
    with pytest.raises(insitu.UsageError, match=r"(?s)colour.*not understood.*would ignore it"):
        llm.trace(PROMPT, colour="blue")
    with pytest.raises(insitu.UsageError, match="did you mean output_hidden_states"):
        llm.trace(input_ids=[[1, 2]], output_hidden_state=True)


def test_settings_of_generation_are_transformers_own(llm):
    encoded = llm.tokenizer(PROMPT, return_tensors="pt")
    for settings in (
        {"max_new_tokens": 4},
        {"max_length": 20},
        {"max_new_tokens": 3, "num_beams": 2},
        {"max_new_tokens": 3, "use_cache": False},
        {"max_new_tokens": 3, "return_dict_in_generate": True, "output_scores": True},
    ):
        expected = llm._module.generate(**encoded, **settings)
        with llm.generate(PROMPT, **settings) as tracer:
            result = tracer.result
        if isinstance(expected, torch.Tensor):
            assert torch.equal(result, expected)
        else:
            assert torch.equal(result.sequences, expected.sequences)
            assert len(result.scores) == 3


def test_a_loaded_model_with_its_tokenizer(tiny_gpt2):
    model, tokenizer = tiny_gpt2
    llm = LanguageModel(model, tokenizer=tokenizer)
    assert llm.tokenizer is tokenizer
    assert llm._module is model
    torch.testing.assert_close(
        logits_of(llm, PROMPT), model(**tokenizer(PROMPT, return_tensors="pt")).logits
    )


def test_a_folder_by_name_and_by_path(folder, tiny_gpt2):
    model, _ = tiny_gpt2
    for place in (str(folder), folder):
        llm = LanguageModel(place)
        assert not llm._module.training
        assert type(llm._module) is type(model)
        expected = model(**llm.tokenizer(PROMPT, return_tensors="pt")).logits
        torch.testing.assert_close(logits_of(llm, PROMPT), expected)


def test_settings_of_loading_reach_transformers(folder):
    assert LanguageModel(folder, dtype=torch.bfloat16)._module.dtype is torch.bfloat16
    assert LanguageModel(folder, torch_dtype=torch.bfloat16)._module.dtype is torch.bfloat16
    eager = LanguageModel(folder, attn_implementation="eager", device_map="cpu", dispatch=True)
    with eager.trace(PROMPT, output_attentions=True) as tracer:
        assert len(tracer.result.attentions) == 4


def test_a_model_loaded_from_a_folder_finds_its_tokenizer_there(folder):
    model = transformers.GPT2LMHeadModel.from_pretrained(folder)
    assert LanguageModel(model).tokenizer is not None


@pytest.mark.parametrize(
    "name", ["./no/such/folder", "/no/such/folder", "~/no/such", "no-such/model"]
)
def test_a_model_that_is_not_there_says_so(name):
    with pytest.raises(insitu.ModelNotFoundError, match=r"(?s)could not be opened.*demo") as caught:
        LanguageModel(name)
    assert isinstance(caught.value, OSError)


def test_a_folder_without_a_model_says_so(tmp_path):
    with pytest.raises(insitu.ModelNotFoundError, match="could not be opened"):
        LanguageModel(tmp_path)


def test_without_a_tokenizer_only_ids_go_in(tiny_gpt2):
    llm = LanguageModel(tiny_gpt2[0])
    assert llm.tokenizer is None
    with pytest.raises(insitu.InputTypeError, match=r"(?s)no tokenizer.*tokenizer=tokenizer"):
        llm.trace(PROMPT)
    with pytest.raises(insitu.InputTypeError, match=r"(?s)unequal lengths.*attention_mask"):
        llm.trace([[1, 2, 3], [1]])
    assert logits_of(llm, [[1, 2, 3], [4, 5, 6]]).shape[:2] == (2, 3)
    with llm.generate([1, 2, 3], max_new_tokens=2):
        assert llm.generator.output.shape == (1, 5)


def test_padding_is_on_the_left_and_a_token_for_it_is_found(tiny_gpt2):
    model, tokenizer = tiny_gpt2
    llm = LanguageModel(model, tokenizer=tokenizer)
    batch = llm.tokenizer([PROMPT, SHORT], padding=True, return_tensors="pt")
    assert batch["attention_mask"][1, 0] == 0
    assert batch["attention_mask"][1, -1] == 1


def test_printing_a_model_shows_its_modules(llm, tiny_gpt2, capsys):
    print(llm)
    assert capsys.readouterr().out == f"{tiny_gpt2[0]!r}\n"
    assert repr(llm.transformer.h[0].mlp) == repr(tiny_gpt2[0].transformer.h[0].mlp)


def test_attributes_of_the_model_are_at_hand(llm, tiny_gpt2):
    assert llm.config is tiny_gpt2[0].config
    assert llm.device == torch.device("cpu")
    assert llm.lm_head.weight is tiny_gpt2[0].lm_head.weight


def test_the_input_of_the_model_is_what_the_tokenizer_made(llm):
    with llm.trace(PROMPT):
        ids = llm.input
        _, kwargs = llm.inputs
        embedded = llm.transformer.wte.input
    assert ids.tolist() == [ids_of(llm)]
    assert kwargs["attention_mask"].all()
    assert torch.equal(embedded, ids)


def test_a_call_takes_text_wherever_it_stands(llm, net, x):
    want = llm._module(**llm.tokenizer(PROMPT, return_tensors="pt")).logits
    other, seen = insitu.NNsight(net), []
    with other.trace(x):
        other.layer1.output
        seen.append(llm(PROMPT).logits)
    for opened in (other.open(x), llm.open(PROMPT)):
        seen.append(llm(PROMPT).logits)
        opened.close()
    with llm.trace(SHORT):
        llm.transformer.h[0].output
        seen += [llm(PROMPT).logits, llm(torch.tensor([ids_of(llm)])).logits]
    assert all(map(torch.equal, seen, [want] * len(seen)))
