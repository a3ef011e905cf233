"""Image-text models: numbers of transformers' own single runs, for two styles of vision tower."""

from pathlib import Path

import numpy as np
import pytest
import reference
import tiny_vision
import torch
from tiny_vision import photo

import insitu
from insitu import LanguageModel
from insitu.models.vision_language import VisionLanguageModel

STYLES = {
    "llava": {
        "make": tiny_vision.llava,
        "placeholder": "<image>",
        "tower": "model.vision_tower",
        "block": "model.vision_tower.encoder.layers.0",
        "projector": "model.multi_modal_projector",
    },
    "qwen2_vl": {
        "make": tiny_vision.qwen2_vl,
        "placeholder": "<|vision_start|><|image_pad|><|vision_end|>",
        "tower": "model.visual",
        "block": "model.visual.blocks.0",
        "projector": "model.visual.merger",
    },
}
LAYER = "model.language_model.layers.2"
ASK = "<image>\nWhat is on the left?"
PAIR = "<image> and <image> Describe"
TEXT = "Hello world"
SIZES = {"llava": (16, 16), "qwen2_vl": (24, 16)}


class Style:
    """One tiny model, wrapped, and what transformers' own run of it gives."""

    def __init__(self, name):
        self.name = name
        self.model, self.processor = STYLES[name]["make"]()
        self.vlm = VisionLanguageModel(self.model, processor=self.processor)

    def path(self, site):
        return STYLES[self.name].get(site, site)

    def node(self, site, vlm=None):
        node = vlm or self.vlm
        for part in self.path(site).split("."):
            node = node[int(part)] if part.isdigit() else getattr(node, part)
        return node

    def encoded(self, text, *images):
        text = text.replace("<image>", STYLES[self.name]["placeholder"])
        if not images:
            return dict(self.processor.tokenizer(text, return_tensors="pt"))
        return dict(self.processor(text=[text], images=list(images), return_tensors="pt"))

    def logits(self, text, *images, edits=None):
        edits = {self.path(site): change for site, change in (edits or {}).items()}
        with torch.no_grad():
            return reference.edited(self.model, edits, **self.encoded(text, *images)).logits

    def value(self, site, text, *images):
        path = self.path(site)
        return reference.outputs(self.model, [path], **self.encoded(text, *images))[path][0]

    def generated(self, text, *images, count=4):
        encoded = self.encoded(text, *images)
        ids = self.model.generate(**encoded, max_new_tokens=count, do_sample=False)
        return ids[0, encoded["input_ids"].shape[1] :]


@pytest.fixture(params=[*STYLES])
def style(request):
    return Style(request.param)


@pytest.fixture
def llava():
    return Style("llava")


def images_of(count, start=1):
    sizes = [(24, 16), (16, 32), (16, 16), (32, 24), (24, 24)]
    return [photo(start + n, *sizes[(start + n) % len(sizes)]) for n in range(count)]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_traced_run_gives_transformers_own_numbers(style):
    (img,) = images_of(1)
    with style.vlm.trace(ASK, images=[img]) as tracer:
        block = style.node("block").output
        patches = style.node("projector").output
        hidden = style.node(LAYER).output
        logits = style.vlm.lm_head.output
        out = tracer.result
    assert torch.equal(block, style.value("block", ASK, img))
    assert torch.equal(patches, style.value("projector", ASK, img))
    assert torch.equal(hidden, style.value(LAYER, ASK, img))
    assert torch.equal(logits, style.logits(ASK, img))
    assert torch.equal(out.logits, logits)


def test_paths_of_the_reference_document(llava):
    with llava.vlm.trace("<image>\nDescribe this image", images=[photo(1)]):
        hidden = llava.vlm.model.language_model.layers[-1].output.save()
    assert hidden.shape[-1] == 32
    with llava.vlm.generate("<image>\nDescribe this image", images=[photo(1)], max_new_tokens=5):
        output = llava.vlm.generator.output.save()
    assert torch.equal(
        output[0, -5:], llava.generated("<image>\nDescribe this image", photo(1), count=5)
    )
    with llava.vlm.trace("Hello world"):
        hidden = llava.vlm.model.language_model.layers[-1].output.save()
    close(hidden, llava.value(LAYER, "Hello world"))
    assert llava.vlm.tokenizer is llava.vlm.processor.tokenizer


def test_every_form_of_an_image_is_the_same_image(style, tmp_path):
    (img,) = images_of(1)
    expected = style.logits(ASK, img)
    file = tmp_path / "photo.png"
    img.save(file)
    array = np.asarray(img).copy()
    forms = [
        img,
        [img],
        str(file),
        Path(file),
        array,
        array.transpose(2, 0, 1),
        torch.tensor(array),
        torch.tensor(array).permute(2, 0, 1),
        torch.tensor(array).permute(2, 0, 1) / 255,
        array.astype(np.float32) / 255,
        torch.tensor(array).permute(2, 0, 1)[None],
        img.convert("RGBA"),
    ]
    for form in forms:
        with style.vlm.trace(ASK, images=form):
            logits = style.vlm.lm_head.output
        assert torch.equal(logits, expected), type(form)


def test_grey_images_are_taken_too(llava):
    grey = photo(1).convert("L")
    expected = llava.logits(ASK, grey.convert("RGB"))
    for form in (grey, np.asarray(grey).copy(), torch.tensor(np.asarray(grey).copy())[None]):
        with llava.vlm.trace(ASK, images=[form]):
            assert torch.equal(llava.vlm.lm_head.output, expected)


def test_text_alone_goes_to_the_tokenizer(style):
    for prompt in (TEXT, [TEXT], style.vlm.tokenizer(TEXT), style.encoded(TEXT)["input_ids"]):
        with style.vlm.trace(prompt):
            logits = style.vlm.lm_head.output
        assert torch.equal(logits, style.logits(TEXT))


def test_texts_alone_in_a_batch_are_padded_right(style):
    with style.vlm.trace([TEXT, "Describe this image. What is on the left?"]):
        logits = style.vlm.lm_head.output
    expected = style.logits(TEXT)
    close(logits[:1, -expected.shape[1] :], expected)


def test_several_images_of_one_prompt(style):
    images = images_of(2)
    with style.vlm.trace(PAIR, images=images):
        logits = style.vlm.lm_head.output
    assert torch.equal(logits, style.logits(PAIR, *images))


CASES = {
    "image, text, images": [(ASK, 1), (TEXT, 0), (PAIR, 2)],
    "text first": [(TEXT, 0), (ASK, 1)],
    "as many images as prompts, all in one": [(TEXT, 0), (PAIR, 2)],
    "and the other way round": [(PAIR, 2), (TEXT, 0)],
    "three": [(ASK, 1), (ASK, 1), (ASK, 1)],
    "four": [(TEXT, 0), (PAIR, 2), (TEXT, 0), (PAIR, 2)],
}


def prompts_of(case):
    made, start = [], 1
    for text, count in CASES[case]:
        made.append((text, images_of(count, start)))
        start += count
    return made


@pytest.mark.parametrize("case", [*CASES])
def test_rows_of_an_invoke_equal_its_run_alone(style, case):
    prompts, seen = prompts_of(case), []
    with style.vlm.trace() as tracer:
        for text, images in prompts:
            with tracer.invoke(text, images=images) if images else tracer.invoke(text):
                patches = style.node("block").output
                widened = style.node("projector").output
                hidden = style.node(LAYER).output
                logits = style.vlm.lm_head.output
                seen.append((patches, widened, hidden, logits))
    for (text, images), (patches, widened, hidden, logits) in zip(prompts, seen, strict=True):
        if images:
            close(patches, style.value("block", text, *images))
            close(widened, style.value("projector", text, *images))
        else:
            assert patches.shape[0] == widened.shape[0] == 0
        expected = style.logits(text, *images)
        close(hidden[:, -expected.shape[1] :], style.value(LAYER, text, *images))
        close(logits[:, -expected.shape[1] :], expected)


@pytest.mark.parametrize("case", ["as many images as prompts, all in one", "image, text, images"])
def test_inputs_and_results_hold_the_invokes_own_images(style, case):
    prompts, seen = prompts_of(case), []
    with style.vlm.trace() as tracer:
        for text, images in prompts:
            with tracer.invoke(text, images=images) if images else tracer.invoke(text):
                _, kwargs = style.vlm.inputs
                _, tower = style.node("tower").inputs
                result = tracer.result
                seen.append((kwargs, tower, result))
    for (text, images), (kwargs, tower, result) in zip(prompts, seen, strict=True):
        own = style.encoded(text, *images)
        for name in ("pixel_values", "image_grid_thw"):
            if name in own:
                assert torch.equal(kwargs[name], own[name])
            elif name in kwargs:
                assert kwargs[name].shape[0] == 0
        assert kwargs["input_ids"].shape[0] == 1
        close(result.logits[:, -own["input_ids"].shape[1] :], style.logits(text, *images))
        if style.name == "llava" and images:
            with torch.no_grad():
                close(result.image_hidden_states, style.model(**own).image_hidden_states)
        if style.name == "qwen2_vl" and images:
            assert torch.equal(tower["grid_thw"], own["image_grid_thw"])


def test_a_list_of_texts_takes_images_in_order_or_by_text(style):
    a, b, c = images_of(3)
    texts = [ASK, TEXT, PAIR]
    for images in ([a, b, c], [[a], [], [b, c]], [[a], None, [b, c]]):
        with style.vlm.trace(texts, images=images):
            logits = style.vlm.lm_head.output
        for row, (text, own) in enumerate(zip(texts, [[a], [], [b, c]], strict=True)):
            expected = style.logits(text, *own)
            close(logits[row : row + 1, -expected.shape[1] :], expected)


def test_an_edit_of_the_tower_reaches_its_own_invoke_alone(style):
    (a, b), tail = images_of(2), slice(-3, None)
    slope = torch.linspace(-3, 3, style.value("block", ASK, a).shape[-1])
    with style.vlm.trace() as tracer:
        with tracer.invoke(ASK, images=[a]):
            style.node("block").output[:] += slope
            changed = style.vlm.lm_head.output
        with tracer.invoke(TEXT):
            text = style.vlm.lm_head.output
        with tracer.invoke(ASK, images=[b]):
            style.node("projector").output = style.node("projector").output * 0
            blank = style.vlm.lm_head.output
    expected = style.logits(ASK, a, edits={"block": lambda out, call: out + slope})
    assert not torch.allclose(expected, style.logits(ASK, a), atol=1e-3)
    close(changed[:, tail], expected[:, tail])
    close(text[:, -1], style.logits(TEXT)[:, -1])
    expected = style.logits(ASK, b, edits={"projector": lambda out, call: out * 0})
    close(blank[:, tail], expected[:, tail])


def test_the_last_layer_of_a_tower_is_replaced_in_every_pass(llava):
    new = torch.randn(1, 4, 24)
    for _ in range(3):  # from the first on, transformers' own hooks note down what layers return
        with llava.vlm.trace(ASK, images=[photo(1)]):
            llava.vlm.model.vision_tower.encoder.layers[1].output = new
            given = llava.node("projector").input
        assert torch.equal(given, new)


def test_what_one_image_gives_is_patched_into_another(style):
    a, b = images_of(1, 3) + images_of(1, 8)
    assert a.size == b.size
    with style.vlm.trace() as tracer:
        with tracer.invoke(ASK, images=[a]):
            seen = style.node("projector").output
        with tracer.invoke(ASK, images=[b]):
            style.node("projector").output = seen
            logits = style.vlm.lm_head.output
    close(logits, style.logits(ASK, a))


def test_a_projector_is_skipped_in_one_invoke(style):
    (a, b) = images_of(2)
    given = style.value("projector", ASK, a) * 2
    with style.vlm.trace() as tracer:
        with tracer.invoke(ASK, images=[a]):
            style.node("projector").skip(given)
            changed = style.vlm.lm_head.output
        with tracer.invoke(ASK, images=[b]):
            plain = style.vlm.lm_head.output
    expected = style.logits(ASK, a, edits={"projector": lambda out, call: given})
    close(changed[:, -3:], expected[:, -3:])
    close(plain[:, -3:], style.logits(ASK, b)[:, -3:])


def test_an_edit_stays_for_later_runs(style):
    (img,) = images_of(1)
    with style.vlm.edit() as edited:
        style.node("projector").output[:] = 0
    with edited.trace(ASK, images=[img]):
        logits = edited.lm_head.output
    assert torch.equal(
        logits, style.logits(ASK, img, edits={"projector": lambda out, call: out * 0})
    )
    assert edited.processor is style.vlm.processor


@pytest.mark.parametrize("settings", [{"num_beams": 2}, {"num_return_sequences": 2}])
def test_images_of_several_prompts_are_not_repeated(style, settings):
    (a, b) = images_of(2)
    with pytest.raises(insitu.InputError, match="was to have 2 rows for each"):
        with style.vlm.generate(max_new_tokens=1, do_sample=True, **settings) as tracer:
            with tracer.invoke(ASK, images=[a]):
                pass
            with tracer.invoke(ASK, images=[b]):
                pass
    with style.vlm.generate(max_new_tokens=1, do_sample=True, **settings) as tracer:
        with tracer.invoke(ASK, images=[a]):
            rows = style.vlm.lm_head.output.shape[0]
    assert rows == 2


def test_generation_gives_transformers_own_tokens(style):
    (a, b) = images_of(2)
    with style.vlm.generate(ASK, images=[a], max_new_tokens=4):
        ids = style.vlm.generator.output
    assert torch.equal(ids[0, -4:], style.generated(ASK, a))
    with style.vlm.generate(max_new_tokens=4) as tracer:
        with tracer.invoke(PAIR, images=[b, a]):
            first = style.vlm.generator.output
        with tracer.invoke(TEXT):
            second = style.vlm.generator.output
        with tracer.invoke(ASK, images=[a]):
            steps = [].save()
            for _ in tracer.iter[:]:
                steps.append(style.vlm.lm_head.output[:, -1].argmax(-1))
            third = style.vlm.generator.output
    assert torch.equal(first[0, -4:], style.generated(PAIR, b, a))
    assert torch.equal(second[0, -4:], style.generated(TEXT))
    assert torch.equal(third[0, -4:], style.generated(ASK, a))
    assert torch.equal(torch.cat(steps), third[0, -4:])


def test_text_after_images_runs_as_if_there_had_been_none(style):
    before = style.logits(TEXT)
    with style.vlm.generate(ASK, images=images_of(1), max_new_tokens=2):
        style.vlm.generator.output.save()
    with style.vlm.trace([TEXT, TEXT]):
        logits = style.vlm.lm_head.output
    close(logits[:1], before)


def test_a_cache_of_an_invoke_holds_its_own_rows(style):
    (a, b) = images_of(2)
    with style.vlm.trace() as tracer:
        with tracer.invoke(TEXT):
            _ = style.vlm.lm_head.output
        with tracer.invoke(PAIR, images=[a, b]):
            cache = tracer.cache(modules=[style.node("block"), style.node(LAYER)])
    close(cache[f"model.{style.path('block')}"].output, style.value("block", PAIR, a, b))
    close(cache[f"model.{LAYER}"].output, style.value(LAYER, PAIR, a, b))


def test_gradients_of_image_embeddings_are_autograds(style):
    (a, b) = images_of(2)
    kept = []

    def keep(out, call):
        kept.append(out.detach().requires_grad_())
        return kept[-1]

    edits = {style.path("projector"): keep}
    reference.edited(style.model, edits, **style.encoded(ASK, a)).logits[0, -1].norm().backward()
    with style.vlm.trace(ASK, images=[a]):
        seen = style.node("projector").output
        seen.requires_grad_()
        loss = style.vlm.lm_head.output[0, -1].norm()
        with loss.backward():
            grad = seen.grad.clone()
    close(grad, kept[0].grad)
    with style.vlm.trace() as tracer:
        with tracer.invoke(ASK, images=[b]):
            _ = style.vlm.lm_head.output
        with tracer.invoke(ASK, images=[a]):
            seen = style.node("projector").output
            seen.requires_grad_()
            loss = style.vlm.lm_head.output[0, -1].norm()
            with loss.backward():
                grad = seen.grad.clone()
    close(grad, kept[0].grad)


def test_operations_inside_a_tower_show_the_invokes_images(llava):
    (a, b, c) = images_of(3)
    with llava.vlm.trace() as tracer:
        with tracer.invoke(TEXT):
            _ = llava.vlm.lm_head.output
        with tracer.invoke(PAIR, images=[a, b]):
            pair = llava.node("block").mlp.source.self_fc1_0.output
    expected = reference.outputs(
        llava.model, [f"{llava.path('block')}.mlp.fc1"], **llava.encoded(PAIR, a, b)
    )
    close(pair, expected[f"{llava.path('block')}.mlp.fc1"][0])
    assert c.size


@pytest.mark.parametrize("how", ["in the message", "beside", "openai"])
def test_chat_messages_hold_images(style, how, tmp_path):
    (img,) = images_of(1)
    img.save(tmp_path / "a.png")
    part = {
        "in the message": {"type": "image", "image": img},
        "beside": {"type": "image"},
        "openai": {"type": "image_url", "image_url": {"url": str(tmp_path / "a.png")}},
    }[how]
    said = [part, {"type": "text", "text": "What is this?"}]
    chat = [{"role": "user", "content": said}]
    further = {"images": [img]} if how == "beside" else {}
    with style.vlm.trace(chat, **further):
        logits = style.vlm.lm_head.output
    assert torch.equal(logits, style.logits("user: <image>What is this?\nassistant:", img))
    with style.vlm.trace() as tracer:
        with tracer.invoke(chat, **further):
            logits = style.vlm.lm_head.output
        with tracer.invoke([{"role": "user", "content": "Hello world"}]):
            text = style.vlm.lm_head.output
    expected = style.logits("user: <image>What is this?\nassistant:", img)
    close(logits[:, -expected.shape[1] :], expected)
    close(text[:, -1], style.logits("user: Hello world\nassistant:")[:, -1])
    assert said[0] is part  # the user's own messages are not changed


def test_inputs_that_are_encoded_already(style):
    (img,) = images_of(1)
    encoded, expected = style.encoded(ASK, img), style.logits(ASK, img)
    with style.vlm.trace(encoded):
        assert torch.equal(style.vlm.lm_head.output, expected)
    with style.vlm.trace(**encoded):
        assert torch.equal(style.vlm.lm_head.output, expected)
    with style.vlm.trace(encoded["input_ids"], images=[img]):
        assert torch.equal(style.vlm.lm_head.output, expected)
    with style.vlm.trace() as tracer:
        with tracer.invoke(TEXT):
            _ = style.vlm.lm_head.output
        with tracer.invoke(**encoded):
            close(style.vlm.lm_head.output[:, -3:], expected[:, -3:])


def test_without_a_trace_it_runs_and_gives_the_output(style):
    (img,) = images_of(1)
    assert torch.equal(
        style.vlm.trace(ASK, images=[img], trace=False).logits, style.logits(ASK, img)
    )
    ids = style.vlm.generate(ASK, images=[img], max_new_tokens=4)
    assert torch.equal(ids[0, -4:], style.generated(ASK, img))


def test_a_scan_gives_shapes_with_images(llava):
    with llava.vlm.scan(ASK, images=[photo(1)]):
        shape = llava.node("projector").output.shape
    assert tuple(shape) == (1, 4, 32)


@pytest.mark.filterwarnings("ignore:.*pad_token_id must be")
@pytest.mark.parametrize("family", [*tiny_vision.OTHERS])
def test_further_families_in_a_batch_equal_their_runs_alone(family):
    model, processor, placeholder, block = tiny_vision.OTHERS[family]()
    vlm = VisionLanguageModel(model, processor=processor)
    a, b, c = photo(1, 24, 16), photo(2, 16, 32), photo(3, 32, 32)
    prompts, seen = [(ASK, [a]), (TEXT, []), (PAIR, [b, c])], []
    tower = vlm.model
    for part in block.split("."):
        tower = tower[int(part)] if part.isdigit() else getattr(tower, part)
    with vlm.trace() as tracer:
        for text, images in prompts:
            with tracer.invoke(text.replace("<image>", placeholder), images=images or None):
                seen.append((tower.output, vlm.lm_head.output))
    for (text, images), (patches, logits) in zip(prompts, seen, strict=True):
        text = text.replace("<image>", placeholder)
        make = processor if images else processor.tokenizer
        encoded = make(text=[text], return_tensors="pt", **({"images": images} if images else {}))
        path = f"model.{block}"
        with torch.no_grad():
            close(logits[:, -encoded["input_ids"].shape[1] :], model(**encoded).logits)
        alone = reference.outputs(model, [path], **encoded)[path]
        if images:
            close(patches, alone[0])
        else:
            assert patches.shape[0] == len(alone) == 0


# From a folder ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[*STYLES])
def saved(request, tmp_path_factory):
    style = Style(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    style.model.save_pretrained(folder)
    style.processor.save_pretrained(folder)
    return style, folder


def test_a_folder_brings_its_processor(saved):
    style, folder = saved
    (img,) = images_of(1)
    vlm = VisionLanguageModel(folder)
    assert type(vlm._module) is type(style.model)
    assert vlm.tokenizer is vlm.processor.tokenizer
    with vlm.trace(ASK, images=[img]):
        assert torch.equal(vlm.lm_head.output, style.logits(ASK, img))
    loaded = VisionLanguageModel(type(style.model).from_pretrained(folder))
    with loaded.trace(ASK, images=[img]):
        assert torch.equal(loaded.lm_head.output, style.logits(ASK, img))


def test_weights_come_when_first_needed(saved):
    style, folder = saved
    (img,) = images_of(1)
    vlm = VisionLanguageModel(folder, dispatch=False)
    assert vlm.lm_head.weight.is_meta
    with vlm.trace(ASK, images=[img]):
        assert torch.equal(vlm.lm_head.output, style.logits(ASK, img))
    with vlm.trace() as tracer:
        with tracer.invoke(TEXT):
            _ = vlm.lm_head.output
        with tracer.invoke(ASK, images=[img]):
            patches = style.node("block", vlm).output
    close(patches, style.value("block", ASK, img))


# What is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count", "told"),
    [
        ("What is it?", 1, "1 image was given for a prompt with 0 placeholders"),
        (ASK, 0, "0 images were given for a prompt with 1 placeholder"),
        (ASK, 2, "2 images were given for a prompt with 1 placeholder"),
        (PAIR, 1, "1 image was given for a prompt with 2 placeholders"),
    ],
)
def test_more_or_fewer_images_than_placeholders(style, text, count, told):
    with pytest.raises(insitu.InputError, match=f"^{told}") as caught:
        with style.vlm.trace(text, images=images_of(count)):
            pass
    assert caught.value.__str__().count("\n") == 2
    with pytest.raises(insitu.InputError, match=told):
        with style.vlm.trace() as tracer:
            with tracer.invoke(TEXT):
                pass
            with tracer.invoke(text, images=images_of(count)):
                pass


def test_a_placeholder_without_any_image(style):
    with pytest.raises(insitu.InputError, match=r"(?s)^0 images were given.*write '<"):
        style.vlm.trace(ASK)


def test_the_text_that_lacks_an_image_is_named(llava):
    with pytest.raises(
        insitu.InputError, match="0 images were given for text 1 of a prompt with 1"
    ):
        llava.vlm.trace([ASK, ASK], images=[[], images_of(1)])


def test_files_that_are_no_images(llava, tmp_path):
    (tmp_path / "no.png").write_text("no picture")
    with pytest.raises(insitu.InputError, match=r"(?s)cannot be read.*Why: Unidentified"):
        llava.vlm.trace(ASK, images=[tmp_path / "no.png"])
    with pytest.raises(insitu.InputError, match=r"(?s)'nowhere.png' cannot be read.*no such file"):
        llava.vlm.trace(ASK, images="nowhere.png")
    with pytest.raises(insitu.InputError, match="is an address, not a file"):
        llava.vlm.trace(ASK, images="https://example.org/a.png")


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (torch.rand(7, 16, 16), r"images= was given float32\[7, 16, 16\]"),
        (torch.rand(3, 16, 16) * 255, "with values from 0.* to 25.*brightness from 0 to 1"),
        (torch.full((16, 16, 3), 300), "values from 300 to 300"),
        (np.full((16, 16, 3), np.nan, np.float32), "values from nan"),
        (7, "images= was given int"),
    ],
)
def test_numbers_that_are_no_image(llava, image, told):
    with pytest.raises(insitu.InputError, match=f"(?s){told}"):
        llava.vlm.trace(ASK, images=[image])


def test_without_a_processor_only_text_and_pixels_go_in(llava):
    vlm = VisionLanguageModel(llava.model, tokenizer=llava.processor.tokenizer)
    assert vlm.processor is None
    with pytest.raises(insitu.InputTypeError, match=r"(?s)no processor.*processor=processor"):
        vlm.trace(ASK, images=[photo(1)])
    with pytest.raises(insitu.InputTypeError, match="no processor"):
        vlm.trace([1, 2, 3], images=[photo(1)])
    with vlm.trace(TEXT):
        assert torch.equal(vlm.lm_head.output, llava.logits(TEXT))
    with vlm.trace(**llava.encoded(ASK, photo(1))):
        assert torch.equal(vlm.lm_head.output, llava.logits(ASK, photo(1)))


def test_a_folder_without_a_processor_says_so(llava, tmp_path):
    llava.model.save_pretrained(tmp_path)
    llava.processor.tokenizer.save_pretrained(tmp_path)
    vlm = VisionLanguageModel(tmp_path)
    assert vlm.processor is None
    with vlm.trace(TEXT):
        assert torch.equal(vlm.lm_head.output, llava.logits(TEXT))
    with pytest.raises(insitu.InputTypeError, match="no processor, and was given images"):
        vlm.trace(ASK, images=[photo(1)])


def test_a_model_that_takes_no_images_is_refused(tiny_gpt2):
    model, tokenizer = tiny_gpt2
    with pytest.raises(insitu.UsageError, match=r"(?s)GPT2LMHeadModel takes no images.*Language"):
        VisionLanguageModel(model, tokenizer=tokenizer)


def test_ids_that_do_not_fit_their_images(style):
    ids = style.encoded(TEXT)["input_ids"]
    with pytest.raises(insitu.InputError, match="the token ids hold 0 tokens of images"):
        style.vlm.trace(ids, images=images_of(1))


def test_a_text_cut_within_its_images(style):
    with pytest.raises(insitu.InputError, match="cut within its images"):
        style.vlm.trace(ASK, images=images_of(1), truncation=True, max_length=3)


def test_images_beside_those_in_messages(style):
    chat = [{"role": "user", "content": [{"type": "image", "image": photo(1)}]}]
    with pytest.raises(insitu.InputError, match="both in the messages and as images="):
        style.vlm.trace(chat, images=[photo(1)])


def test_messages_without_a_template(llava):
    processor = tiny_vision.llava.__wrapped__()[1]
    processor.chat_template = None
    vlm = VisionLanguageModel(llava.model, processor=processor)
    with pytest.raises(insitu.InputTypeError, match="no chat template"):
        vlm.trace([{"role": "user", "content": "Hello"}])


def test_a_language_model_knows_no_images(llm):
    with pytest.raises(insitu.UsageError, match="images, which is not understood"):
        llm.trace("Hello", images=[photo(1)])
    assert isinstance(llm, LanguageModel)
