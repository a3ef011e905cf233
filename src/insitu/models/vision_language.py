"""`VisionLanguageModel`: a transformers image-text model with its processor, wrapped for tracing.

model = VisionLanguageModel("demo")
with model.trace("<image>\\nWhat colour is the circle?", images=[draw("circle", "red", "left")]):
    patches = model.model.multi_modal_projector.output      # [image, pos, d_model]
    logits = model.lm_head.output                           # [batch, pos, d_vocab]
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from insitu.engine.batch import Rows
from insitu.errors import InputError, InputTypeError, UsageError
from insitu.models import image_prompts, image_rows, inputs, loading, processors
from insitu.models.generation import Generation
from insitu.models.image_prompts import COMMON
from insitu.models.images import pictures
from insitu.models.joining import Forward
from insitu.models.language import LanguageModel
from insitu.models.padding import Batch

DEMO = Path(__file__).parent / "demo_vision" / "checkpoint"
_FOR_IMAGES = frozenset({"images", "images_kwargs"})


class VisionLanguageModel(LanguageModel):
    """Wrap an image-text model; images and text go in, and both halves can be read and changed.

        model = VisionLanguageModel("demo")                        # ships with insitu
        model = VisionLanguageModel("llava-hf/llava-interleave-qwen-0.5b-hf", device_map="auto")
        model = VisionLanguageModel(hf_model, processor=processor)

        with model.generate("<image>\\nDescribe this image", images=[img], max_new_tokens=20):
            ids = model.generator.output

        with model.trace() as tracer:
            with tracer.invoke("<image>\\nWhat shape is it?", images=["photo.jpg"]):
                seen = model.model.multi_modal_projector.output     # of this invoke's image
            with tracer.invoke("How many corners has a square?"):   # text alone
                logits = model.lm_head.output

    Inside an invoke, modules of the language model show the rows of its prompts and modules of the
    vision tower those of its images: none, `[0, …]`, where it has none. Where a tower arranges its
    rows in a way that is not known here, they are left whole.

    Args:
        model: `"demo"`, a folder, a hub name, or a loaded transformers model.
        processor: for a loaded model; a name brings its own.
        tokenizer: for text alone, where it is not to be the processor's.
        dispatch, rename, views, **settings: as for `LanguageModel`.

    Raises:
        ModelNotFoundError: no such folder, and no such name in the cache or on the hub.
        UsageError: the model takes no images.
    """

    processor: Any
    """Turns images and text into what the model takes; None where there is none."""
    _WORDS = LanguageModel._WORDS | _FOR_IMAGES

    @staticmethod
    def _choose(transformers: Any, config: Any) -> Any:
        return image_text_class(transformers, config)

    def __init__(
        self, model: str | Path | nn.Module, *, processor: Any = None, **settings: Any
    ) -> None:
        if model == "demo":
            model, settings = DEMO, {"dtype": "float32", **settings}  # in float16, to be small
        self.__dict__.update(processor=processor, _no_processor="it was wrapped without one")
        super().__init__(model, **settings)
        if not any(image_rows.is_of_images(name) for name in self._kind.takes):
            kind = type(self._module).__name__
            raise UsageError(
                f"{kind} takes no images.",
                "its forward has no argument for them.",
                "wrap it with LanguageModel(…).",
            )

    def _take_tokenizer(self, tokenizer: Any, checkpoint: loading.Checkpoint | None) -> None:
        """Hold the processor that was given, or the one beside the weights, and its tokenizer."""
        own: dict[str, Any] = self.__dict__
        if own["processor"] is None:
            own["processor"] = self._found_processor(checkpoint)
        if tokenizer is None and own["processor"] is not None:
            tokenizer = own["processor"].tokenizer
        super()._take_tokenizer(tokenizer, checkpoint)

    def _found_processor(self, checkpoint: loading.Checkpoint | None) -> Any:
        """The processor beside the weights; None where it cannot be made."""
        if checkpoint is not None:
            found = processors.beside(checkpoint.companion, checkpoint.config)
        else:
            model = self._transformer
            found = processors.beside(lambda kind: loading.companion_of(model, kind), model.config)
        processor, self.__dict__["_no_processor"] = found
        return processor

    @functools.cached_property
    def _about(self) -> image_rows.About:
        return image_rows.about(self._transformer)

    # From what was given to a call -------------------------------------------------------------

    def _encode(self, method: str, prompt: Any, settings: dict[str, Any]) -> Batch:
        """Text and images as the model's inputs; text alone as the tokenizer encodes it."""
        rest = dict(settings)
        images, how = rest.pop("images", None), rest.pop("images_kwargs", None) or {}
        if chats := image_prompts.messages_of(prompt):
            texts, images = self._written(chats, images, rest)
            rest = {name: value for name, value in rest.items() if name not in inputs.FOR_CHAT}
            rest.setdefault("add_special_tokens", False)  # the template has written them
            return self._encode_texts(method, texts, images, rest, how)
        if isinstance(prompt, str):
            return self._encode_texts(method, [prompt], images, rest, how)
        if isinstance(prompt, (list, tuple)) and prompt and all(type(p) is str for p in prompt):
            return self._encode_texts(method, list(prompt), images, rest, how)
        batch = super()._encode(method, prompt, rest)
        return batch if images is None else self._beside_ids(batch, images, how)

    def _written(
        self, chats: list[list[Any]], images: Any, settings: dict[str, Any]
    ) -> tuple[list[str], Any]:
        """Conversations as texts, and the images in them, or those given beside."""
        speaker = self.processor if self.processor is not None else self.tokenizer
        written = [image_prompts.as_text(chat, speaker, settings) for chat in chats]
        texts, held = [text for text, _ in written], [own for _, own in written]
        if any(held) and images is not None:
            raise InputError(
                "images were given both in the messages and as images=.",
                "it cannot be told which stands where.",
                "put each into its message, or write {'type': 'image'} there and give images=.",
            )
        return texts, held if any(held) else images

    def _encode_texts(
        self, method: str, texts: list[str], images: Any, rest: dict[str, Any], how: dict[str, Any]
    ) -> Batch:
        if self.processor is None:
            if images is not None:
                raise self._processor_missing()
            return super()._encode(method, texts, rest)
        texts = [image_prompts.own_spelling(text, self.processor) for text in texts]
        each_images = image_prompts.paired(texts, images, self._placeholder)
        if not any(each_images):
            return super()._encode(method, texts, rest)
        each: list[Batch] = []
        for text, own in zip(texts, each_images, strict=True):
            alone = super()._encode(method, text, rest) if not own else None
            each.append(self._processed(text, own, rest, how) if alone is None else alone)
        return each[0] if len(each) == 1 else self._joined(each)[0]

    def _processed(
        self, text: str, images: list[Any], rest: dict[str, Any], how: dict[str, Any]
    ) -> Batch:
        """One text and its images, by the processor."""
        try:
            made = self.processor(
                text=[text], images=images, return_tensors="pt", images_kwargs=how, **rest
            )
        except ValueError as error:
            if "Mismatch" not in str(error):
                raise
            raise InputError(
                "the text was cut within its images.",
                f"{str(error).splitlines()[0]}",
                "give a larger max_length, or leave truncation out.",
            ) from error
        return dict(made)

    def _beside_ids(self, batch: Batch, images: Any, how: dict[str, Any]) -> Batch:
        """Token ids that hold the tokens of images already, with those images."""
        if self.processor is None:
            raise self._processor_missing()
        flat = pictures(images)
        text = image_prompts.own_spelling(COMMON, self.processor)
        made = self._processed(text * len(flat), flat, {}, how)
        token = self._about.image_token
        wanted = int((made["input_ids"] == token).sum())
        given = int((batch["input_ids"] == token).sum())
        if wanted != given:
            raise InputError(
                f"the token ids hold {given} tokens of images, and these images take {wanted}.",
                "each image's token stands in the ids as often as the image has patches.",
                "pass text, in which one placeholder stands for an image.",
            )
        _, of_images = image_rows.text_and_images(made)
        if "mm_token_type_ids" in made:
            of_images["mm_token_type_ids"] = (batch["input_ids"] == token).long()
        return {**batch, **of_images}

    def _joined(self, batches: list[Batch]) -> tuple[Batch, tuple[Rows, ...]]:
        """Several encoded prompts as one batch, with the images of all below each other."""
        split = [image_rows.text_and_images(batch) for batch in batches]
        texts = image_rows.with_token_types([text for text, _ in split])
        joined, rows = super()._joined(texts)
        parts = [images for _, images in split]
        if not any(parts):
            return joined, rows
        whose = image_rows.apart(parts, [t.get("input_ids") for t in texts], rows, self._about)
        return WithImages({**joined, **image_rows.joined_images(parts, rows)}, whose), rows

    def _forward_of(self, batch: Batch, settings: dict[str, Any]) -> Forward:
        call = super()._forward_of(batch, settings)
        call.apart = getattr(batch, "apart", None)
        return call

    def _generation_of(self, batch: Batch, settings: dict[str, Any]) -> Generation:
        call = super()._generation_of(batch, settings)
        call.apart = getattr(batch, "apart", None)
        return call

    def _completed(self, batch: Batch) -> Batch:
        """The inputs with what the forward would have to guess; it knows where images stand."""
        completed = super()._completed(batch)
        if "position_ids" not in batch and any("grid" in name for name in batch):
            completed.pop("position_ids", None)
        return completed

    @property
    def _placeholder(self) -> str:
        return str(getattr(self.processor, "image_token", None) or COMMON)

    def _processor_missing(self) -> InputTypeError:
        return InputTypeError(
            "this model has no processor, and was given images.",
            f"{self._no_processor}, so only pixel_values can go in.",
            "wrap it with VisionLanguageModel(model, processor=processor).",
        )


class WithImages(dict[str, Any]):
    """The inputs of several prompts, and whose images are where."""

    def __init__(self, batch: Mapping[str, Any], apart: image_rows.Apart) -> None:
        super().__init__(batch)
        self.apart = apart


def image_text_class(transformers: Any, config: Any) -> Any:
    """The class the checkpoint was saved from, or the one for images and text of its kind."""
    for name in getattr(config, "architectures", None) or ():
        if hasattr(transformers, name):
            return getattr(transformers, name)
    auto = transformers.AutoModelForImageTextToText
    if type(config) in auto._model_mapping:
        return auto
    return loading.language_class(transformers, config)
