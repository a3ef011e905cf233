"""Prompts with images in them: which image belongs to which text, and conversations as texts.

    paired(["<image>\\nWhat is it?", "Hello"], [cat], "<image>")     # [[cat], []]
    as_text(messages, processor, {})                               # text, and the images in it

Every image has a placeholder in its text, which the processor widens to as many tokens as the image
takes.
"""

from collections.abc import Mapping
from typing import Any

from insitu.errors import InputError, InputTypeError
from insitu.models.images import pictures
from insitu.models.inputs import FOR_CHAT

COMMON = "<image>"
"""What a placeholder is called in most models; understood for the others too."""
_IN_PARTS = ("image", "path", "url", "image_url")


def messages_of(prompt: Any) -> list[list[Any]]:
    """The conversations of a prompt; none where it is something else."""
    if isinstance(prompt, Mapping):
        prompt = [prompt]
    if not isinstance(prompt, (list, tuple)) or not prompt:
        return []
    if all(_is_message(part) for part in prompt):
        return [list(prompt)]
    are_chats = (
        isinstance(part, (list, tuple)) and part and all(map(_is_message, part)) for part in prompt
    )
    return [list(part) for part in prompt] if all(are_chats) else []


def as_text(chat: list[Any], processor: Any, settings: Mapping[str, Any]) -> tuple[str, list[Any]]:
    """A conversation as its template writes it, and the images that its messages hold.

    Args:
        chat: messages; their content is text, or a list of parts of type `text` or `image`.
        processor: has the template.
        settings: those of the template.

    Raises:
        InputTypeError: there is no template.
    """
    template = settings.get("chat_template") or getattr(processor, "chat_template", None)
    if template is None and getattr(processor, "tokenizer", None) is not None:
        template = getattr(processor.tokenizer, "chat_template", None)
    if template is None:
        raise InputTypeError(
            "this model was given chat messages, and its processor has no chat template.",
            "a template says how roles, images and text become one prompt; base models have none.",
            f'give chat_template=…, or write it out: "{COMMON}\\nDescribe this image".',
        )
    images: list[Any] = []
    plain = [{**message, "content": _plain(message["content"], images)} for message in chat]
    how = {"add_generation_prompt": chat[-1]["role"] != "assistant"}
    how.update({name: value for name, value in settings.items() if name in FOR_CHAT})
    how.update(how.pop("chat_template_kwargs", None) or {})
    how["chat_template"] = template
    text: str = processor.apply_chat_template(plain, tokenize=False, **how)
    return text, images


def paired(texts: list[str], images: Any, placeholder: str) -> list[list[Any]]:
    """The images of each text, as PIL images.

    Args:
        texts: one or several, with a placeholder for each image.
        images: an image, a list of them in the order of their placeholders, or for several texts a
            list of lists.
        placeholder: what stands for an image.

    Raises:
        InputError: there are more or fewer images than placeholders.
    """
    wanted = [text.count(placeholder) for text in texts]
    if _is_per_text(images, texts):
        given = [pictures(part) for part in images]
    else:
        flat = pictures(images)
        if len(flat) != sum(wanted):
            raise _unequal(sum(wanted), len(flat), placeholder, "")
        given = []
        for count in wanted:
            given.append(flat[:count])
            flat = flat[count:]
    for number, (count, own) in enumerate(zip(wanted, given, strict=True), 1):
        if count != len(own):
            where = f" text {number} of" if len(texts) > 1 else ""
            raise _unequal(count, len(own), placeholder, where)
    return given


def own_spelling(text: str, processor: Any) -> str:
    """A text in which `<image>` is written as the model's processor wants it."""
    own = getattr(processor, "image_token", None)
    if own is None or COMMON not in text or own in text or own == COMMON:
        return text
    vocabulary = processor.tokenizer.get_vocab()
    around = ("<|vision_start|>", "<|vision_end|>")
    if all(token in vocabulary for token in around) and own == "<|image_pad|>":
        own = own.join(around)
    return text.replace(COMMON, own)


def _is_per_text(images: Any, texts: list[str]) -> bool:
    """Whether each text was given a list of its own."""
    if not isinstance(images, (list, tuple)) or len(images) != len(texts):
        return False
    nested = [part is None or isinstance(part, (list, tuple)) for part in images]
    return all(nested)


def _plain(content: Any, images: list[Any]) -> Any:
    """A message's content without its images, which go into a list."""
    if not isinstance(content, (list, tuple)):
        return content
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("image", "image_url"):
            parts.append(part)
            continue
        held = next((part[name] for name in _IN_PARTS if part.get(name) is not None), None)
        if isinstance(held, Mapping):  # {"image_url": {"url": …}}
            held = held.get("url")
        if held is not None:
            images.append(held)
        parts.append({"type": "image"})
    return parts


def _is_message(part: Any) -> bool:
    return isinstance(part, Mapping) and "role" in part and "content" in part


def _unequal(wanted: int, given: int, placeholder: str, where: str) -> InputError:
    said = "placeholder" if wanted == 1 else "placeholders"
    held = "image was" if given == 1 else "images were"
    return InputError(
        f"{given} {held} given for{where} a prompt with {wanted} {said}.",
        f"each image stands where the prompt says {placeholder!r}.",
        f"write {placeholder!r} once for each image, and give images=[…] in that order.",
    )
