"""Prompts in all their forms, with settings of the tokenizer and the chat template beside them."""

import pytest
import torch
import transformers
from families import FAMILIES

import insitu
from insitu import LanguageModel

PROMPT, SHORT = "The Eiffel Tower is in the city of", "Once upon"
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
USER = {"role": "user", "content": "Where is it?"}
ANSWER = {"role": "assistant", "content": "Paris"}


@pytest.fixture
def t5(tiny_gpt2):
    return LanguageModel(FAMILIES["t5"].built(), tokenizer=tiny_gpt2[1])


@pytest.fixture
def bert(tiny_gpt2):
    return LanguageModel(FAMILIES["bert"].built(), tokenizer=tiny_gpt2[1])


@pytest.fixture
def chat(tiny_gpt2, monkeypatch):
    model, tokenizer = tiny_gpt2
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    return LanguageModel(model, tokenizer=tokenizer)


def ids_given(model, *args, **kwargs):
    """The ids that reach the embedding, [batch, pos]."""
    with model.trace(*args, **kwargs):
        return model.input


def encoded(model, text, **settings):
    return model.tokenizer(text, return_tensors="pt", **settings)["input_ids"]


# Forms -------------------------------------------------------------------------------------------


def test_lists_and_arrays_and_encodings_without_tensors_are_the_same_prompt(llm):
    wanted = encoded(llm, PROMPT)
    row = wanted[0].tolist()
    numpy = wanted.numpy()
    forms = [llm.tokenizer(PROMPT), llm.tokenizer([PROMPT]), numpy, numpy[0], [wanted[0]],
             [numpy[0]], list(wanted[0]), {"input_ids": row}]  # fmt: skip
    for form in forms:
        assert torch.equal(ids_given(llm, form), wanted), form
    for form in (row, [row], wanted[0], wanted):
        assert torch.equal(ids_given(llm, input_ids=form), wanted)


def test_ragged_ids_are_padded_as_texts_are(llm):
    rows = [llm.tokenizer(text)["input_ids"] for text in (PROMPT, SHORT)]
    wanted = llm([PROMPT, SHORT]).logits
    for form in (rows, [torch.tensor(row) for row in rows], llm.tokenizer([PROMPT, SHORT])):
        assert torch.equal(llm(form).logits, wanted)
    assert torch.equal(llm(input_ids=rows).logits, wanted)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (None, "cannot run on NoneType"), (3, "cannot run on int"), ([], "an empty list"),
        ([PROMPT, 3], "cannot run on list"), ([[1, "a"]], "cannot run on list"),
        (torch.rand(1, 3), r"(?s)cannot run on.*inputs_embeds="),
        (torch.zeros(1, 2, 3, dtype=torch.long), "of shape"),
        ({"role": "user"}, "cannot run on dict"),
    ],
)  # fmt: skip
def test_what_is_no_prompt_says_what_a_prompt_is(llm, prompt, said):
    with pytest.raises(insitu.InputError, match=said), llm.trace(prompt):
        _ = llm.output


def test_two_prompts_are_not_guessed_at(llm):
    with pytest.raises(insitu.InputTypeError, match=r"takes one prompt, and was given 2"):
        llm.trace(PROMPT, SHORT)
    with pytest.raises(insitu.InputTypeError, match=r"a prompt and input_ids too"):
        llm.trace(PROMPT, input_ids=torch.tensor([[1]]))


def test_tensors_beside_a_prompt_are_inputs_of_its_rows(llm):
    ids = encoded(llm, PROMPT)
    wanted = llm._module(input_ids=ids, labels=ids).loss
    with llm.trace(PROMPT, labels=ids) as tracer:
        assert torch.equal(tracer.result.loss, wanted)
    with llm.trace() as tracer:
        with tracer.invoke(PROMPT, labels=ids):
            pass
        with tracer.invoke(SHORT, labels=encoded(llm, SHORT)):
            labels = llm.inputs[1]["labels"]
    assert labels.shape == (1, ids.shape[1])
    assert (labels[0, :2] == -100).all()


def test_a_model_called_as_it_is_takes_a_prompt_too(llm):
    wanted = llm._module(**llm.tokenizer(PROMPT, return_tensors="pt")).logits
    assert torch.equal(llm(PROMPT).logits, wanted)
    assert torch.equal(llm(input_ids=encoded(llm, PROMPT)).logits, wanted)
    with pytest.raises(insitu.InputError, match="no input"):
        llm()


# Settings of the tokenizer -----------------------------------------------------------------------


def test_settings_of_the_tokenizer_stand_beside_the_forwards(llm):
    ids = encoded(llm, PROMPT)
    with llm.trace(PROMPT, truncation=True, max_length=3, output_hidden_states=True) as tracer:
        assert torch.equal(llm.input, ids[:, :3])
        assert len(tracer.result.hidden_states) == 5
    padded = ids_given(llm, SHORT, padding="max_length", max_length=10)
    assert padded.shape == (1, 10)
    assert ids_given(llm, [PROMPT, SHORT], pad_to_multiple_of=16).shape == (2, 16)


def test_each_invoke_has_its_own(llm):
    with llm.trace() as tracer:
        with tracer.invoke(PROMPT, truncation=True, max_length=2):
            first = llm.input
        with tracer.invoke(PROMPT, truncation=True, max_length=4):
            second = llm.input
    ids = encoded(llm, PROMPT)
    assert torch.equal(first[:, -2:], ids[:, :2])
    assert torch.equal(second, ids[:, :4])


def test_those_of_a_trace_are_its_invokes_defaults(llm):
    with llm.trace(truncation=True, max_length=3) as tracer:
        with tracer.invoke(PROMPT):
            first = llm.input
        with tracer.invoke(PROMPT, max_length=5):
            second = llm.input
    assert torch.equal(first[:, 2:], encoded(llm, PROMPT)[:, :3])
    assert second.shape == (1, 5)


def test_special_tokens_can_be_left_out(tiny_gpt2, monkeypatch):
    from tokenizers.processors import TemplateProcessing

    model, tokenizer = tiny_gpt2
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=type(tokenizer.backend_tokenizer).from_str(
            tokenizer.backend_tokenizer.to_str()
        ),
        bos_token="<|end|>", eos_token="<|end|>", pad_token="<|end|>",
    )  # fmt: skip
    fast.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", 0)]
    )
    llm = LanguageModel(model, tokenizer=fast)
    with_it = ids_given(llm, SHORT)
    assert torch.equal(ids_given(llm, SHORT, add_special_tokens=False), with_it[:, 1:])


def test_max_length_is_the_generations_unless_it_cuts_the_prompt(llm):
    length = encoded(llm, PROMPT).shape[1]
    with llm.generate(PROMPT, max_length=length + 2):
        assert llm.generator.output.shape == (1, length + 2)
    with llm.generate(PROMPT, truncation=True, max_length=4, max_new_tokens=2):
        assert llm.generator.output.shape == (1, 6)


def test_settings_that_invokes_disagree_on_are_refused(llm):
    with (
        pytest.raises(insitu.InputError, match="invoke 2 was given output_attentions=False"),
        llm.trace() as tracer,
    ):
        with tracer.invoke(PROMPT, output_attentions=True):
            pass
        with tracer.invoke(SHORT, output_attentions=False):
            pass


def test_a_word_that_nothing_knows_is_refused_in_an_invoke_too(llm):
    with (
        pytest.raises(insitu.UsageError, match=r"(?s)invoke\(\) was given truncat.*truncation"),
        llm.trace() as tracer,
        tracer.invoke(PROMPT, truncat=True),
    ):
        pass


def test_an_invoke_of_settings_alone_has_no_input(llm):
    with (
        pytest.raises(insitu.InputError, match=r"invoke\(\) was given no input"),
        llm.trace() as tracer,
        tracer.invoke(output_attentions=True),
    ):
        pass


# Chat --------------------------------------------------------------------------------------------


def test_a_conversation_goes_through_the_template(chat):
    wanted = encoded(chat, "<user>Where is it?\n<assistant>")
    assert torch.equal(ids_given(chat, [USER]), wanted)
    assert torch.equal(ids_given(chat, USER), wanted)
    answered = encoded(chat, "<user>Where is it?\n<assistant>Paris\n")
    assert torch.equal(ids_given(chat, [USER, ANSWER]), answered)
    plain = encoded(chat, "<user>Where is it?\n")
    assert torch.equal(ids_given(chat, [USER], add_generation_prompt=False), plain)


def test_conversations_are_a_batch(chat):
    batch = [[USER], [USER, ANSWER, USER]]
    together = chat(batch).logits
    for row, one in zip(together, batch, strict=True):
        alone = chat(one).logits[0]
        torch.testing.assert_close(row[-len(alone) :], alone, rtol=1e-4, atol=1e-4)


def test_a_conversation_is_answered(chat):
    wanted = chat._module.generate(
        encoded(chat, "<user>Where is it?\n<assistant>"), max_new_tokens=3
    )
    with chat.generate([USER], max_new_tokens=3):
        assert torch.equal(chat.generator.output, wanted)


def test_a_template_can_be_given(llm):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    wanted = encoded(llm, "Where is it?")
    assert torch.equal(ids_given(llm, [USER], chat_template=template), wanted)


def test_without_a_template_messages_are_refused(llm):
    with pytest.raises(insitu.InputTypeError, match=r"(?s)no chat template.*chat_template="):
        llm.trace([USER])


# Encoders, and encoders with a decoder -----------------------------------------------------------


def test_an_encoder_is_traced_and_edited(bert):
    encoding = bert.tokenizer(PROMPT, return_tensors="pt")
    plain = bert._module(**encoding)
    layer = bert._module.encoder.layer[0]
    handle = layer.register_forward_hook(
        lambda m, args, out: (out[0] * 2, *out[1:]) if isinstance(out, tuple) else out * 2
    )
    wanted = bert._module(**encoding).last_hidden_state
    handle.remove()
    with bert.trace(PROMPT) as tracer:
        out = bert.encoder.layer[0].output
        if isinstance(out, tuple):
            out[0][:] *= 2
        else:
            bert.encoder.layer[0].output = out * 2
        assert torch.equal(tracer.result.last_hidden_state, wanted)
    assert not torch.equal(wanted, plain.last_hidden_state)


def test_an_encoder_does_not_generate(bert):
    with pytest.raises(insitu.UsageError, match=r"(?s)BertModel cannot gen.*model\.trace") as said:
        bert.generate(PROMPT, max_new_tokens=2)
    assert "encoders" in said.value.why


def test_text_goes_to_the_encoder_and_the_decoder_begins(t5):
    encoding = t5.tokenizer(PROMPT, return_tensors="pt")
    start = torch.full((1, 1), t5._module.config.decoder_start_token_id)
    wanted = t5._module(**encoding, decoder_input_ids=start).logits
    with t5.trace(PROMPT) as tracer:
        hidden = t5.encoder.output[0]
        assert torch.equal(tracer.result.logits, wanted)
    assert hidden.shape[1] == encoding["input_ids"].shape[1]
    with t5.generate(PROMPT, max_new_tokens=1, do_sample=False):
        first = t5.generator.output[0, 1]
    assert wanted[0, -1].argmax() == first


def test_the_decoder_is_given_ids_or_labels(t5):
    encoding, ids = t5.tokenizer(PROMPT, return_tensors="pt"), torch.tensor([[0, 5, 6]])
    wanted = t5._module(**encoding, decoder_input_ids=ids).logits
    assert torch.equal(t5(PROMPT, decoder_input_ids=ids).logits, wanted)
    assert torch.equal(t5(PROMPT, decoder_input_ids=[0, 5, 6]).logits, wanted)
    loss = t5._module(**encoding, labels=ids).loss
    assert torch.equal(t5(PROMPT, labels=ids).loss, loss)


def test_the_steps_of_a_generation_are_the_decoders(t5):
    encoding = t5.tokenizer(PROMPT, return_tensors="pt")
    how = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    wanted = t5._module.generate(**encoding, **how)
    with t5.generate(PROMPT, **how) as tracer:
        encoder = t5.encoder.output[0]
        tokens = []
        for _ in tracer.iter[:]:
            tokens.append(t5.lm_head.output[0, -1].argmax())
        assert torch.equal(t5.generator.output, wanted)
    assert torch.stack(tokens).tolist() == wanted[0, 1:].tolist()
    assert encoder.shape[1] == encoding["input_ids"].shape[1]


def test_invokes_of_a_decoder_see_their_own_rows(t5):
    ids = [torch.tensor([[0, 5, 6]]), torch.tensor([[0, 7]])]
    with t5.trace() as tracer:
        with tracer.invoke(PROMPT, decoder_input_ids=ids[0]):
            first = t5.lm_head.output
        with tracer.invoke(SHORT, decoder_input_ids=ids[1]):
            second = t5.lm_head.output
    torch.testing.assert_close(first, t5(PROMPT, decoder_input_ids=ids[0]).logits)
    alone = t5(SHORT, decoder_input_ids=ids[1]).logits
    torch.testing.assert_close(second[:, :2], alone, rtol=1e-4, atol=1e-5)


def test_a_decoder_without_a_first_token_says_so(tiny_gpt2):
    net = FAMILIES["t5"].build()
    for config in (net.config, net.generation_config):
        config.decoder_start_token_id = config.bos_token_id = None
    model = LanguageModel(net, tokenizer=tiny_gpt2[1])
    with pytest.raises(insitu.InputError, match=r"(?s)nothing for its decoder.*decoder_input_ids="):
        model.trace(PROMPT)


# What a model cannot read ------------------------------------------------------------------------


def test_a_text_beyond_the_last_position_is_refused_before_the_run(llm):
    text = "The Eiffel Tower is in the city of Paris. " * 20
    with pytest.raises(insitu.InputError, match=r"(?s)reads at most 64.*truncation=True") as said:
        llm.trace(text)
    assert said.value.what.startswith("the prompt has ")
    assert ids_given(llm, text, truncation=True).shape == (1, 64)
    with pytest.raises(insitu.InputError, match="reads at most 64"), llm.trace() as tracer:
        with tracer.invoke(text):
            pass


def test_a_generation_beyond_the_last_position_is_refused(llm):
    ids = [1] * 60
    with pytest.raises(insitu.InputError, match=r"(?s)go beyond position 64.*max_new_tokens=5"):
        llm.generate(ids, max_new_tokens=6)
    with llm.generate(ids, max_new_tokens=5):
        assert llm.generator.output.shape == (1, 65)
    with pytest.raises(insitu.InputError, match="go beyond position 64"):
        llm.generate(ids, max_length=70)


@pytest.mark.parametrize(
    ("family", "limit"), [("gpt2", 64), ("opt", 64), ("bert", 64), ("llama", None), ("t5", None),
                          ("mamba", None), ("bloom", None), ("gpt_neox", None)],
)  # fmt: skip
def test_positions_are_counted_where_there_is_a_table(tiny_gpt2, family, limit):
    net = FAMILIES[family].built()
    model = LanguageModel(net, tokenizer=tiny_gpt2[1])
    assert model._positions == limit
    if limit is not None:
        fitting = torch.ones(1, limit, dtype=torch.long)
        assert model(fitting)[0].shape[1] == limit  # the table is no shorter
        with pytest.raises(insitu.InputError, match=f"reads at most {limit}"):
            model(torch.ones(1, limit + 1, dtype=torch.long))


def test_an_id_beyond_the_vocabulary_is_refused(llm):
    with pytest.raises(insitu.InputError, match=r"(?s)token id 9999.*ids 0 to 3\d\d"):
        llm.trace([1, 2, 9999])
    with pytest.raises(insitu.InputError, match=r"token id -1"):
        llm.trace([1, -1])


def test_a_tokenizer_without_any_pad_token_says_so(tiny_gpt2, monkeypatch):
    model, tokenizer = tiny_gpt2
    bare = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    llm = LanguageModel(model, tokenizer=bare)
    assert llm(SHORT).logits.shape[0] == 1
    for batch in ([PROMPT, SHORT], [[1, 2, 3], [1]]):
        with pytest.raises(insitu.InputError, match=r"there is no pad token"):
            llm.trace(batch)
    with pytest.raises(insitu.InputError, match=r"no pad token"), llm.trace() as tracer:
        with tracer.invoke(PROMPT):
            pass
        with tracer.invoke(SHORT):
            pass


# Generation settings of a checkpoint -------------------------------------------------------------


@pytest.fixture
def sampling(tiny_gpt2):
    model, tokenizer = tiny_gpt2
    config = model.generation_config
    before = config.to_dict()
    config.update(do_sample=True, temperature=0.6, top_k=5)
    yield LanguageModel(model, tokenizer=tokenizer)
    config.update(**{name: before.get(name) for name in ("do_sample", "temperature", "top_k")})


def test_what_a_checkpoint_sets_for_generation_is_shown(sampling, llm):
    assert sampling.generation_settings == {"do_sample": True, "temperature": 0.6, "top_k": 5}
    assert repr(sampling).endswith("\nGeneration: do_sample=True, temperature=0.6, top_k=5")


def test_a_checkpoint_without_such_settings_shows_nothing(llm):
    assert llm.generation_settings == {}
    assert "Generation" not in repr(llm)


def test_sampling_that_the_caller_did_not_ask_for_is_said_once(sampling):
    with pytest.warns(insitu.InsituWarning, match=r"samples, as.*temperature=0\.6") as told:
        sampling.generate(PROMPT, max_new_tokens=1)
    assert told[0].filename == __file__
    sampling.generate(PROMPT, max_new_tokens=1)  # a second warning would be an error here


def test_a_caller_who_chooses_hears_nothing(sampling):
    sampling.generate(PROMPT, max_new_tokens=1, do_sample=True)
    sampling.generate(PROMPT, max_new_tokens=1, do_sample=False)
