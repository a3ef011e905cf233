"""The processor beside a model's weights: what turns images and text into what the model takes.

    processor, why_not = beside(checkpoint.companion, checkpoint.config)

Processors of models that take videos too (Qwen2-VL and later) need torchvision for those alone, and
transformers makes none without it. Such a one is made here without its videos.
"""

import functools
from collections.abc import Callable
from typing import Any

from insitu.errors import ModelNotFoundError

Found = tuple[Any, str]
"""A processor, or None and why there is none."""


def beside(read: Callable[[Any], Any], config: Any) -> Found:
    """The processor of a checkpoint.

    Args:
        read: makes what an Auto class, by name, or a class finds there.
        config: the model's config.
    """
    found, why = None, "it was wrapped without one"
    try:
        found = read("AutoProcessor")
    except (OSError, ValueError, ImportError, AttributeError) as error:
        why = error.why if isinstance(error, ModelNotFoundError) else str(error)
    found = found if found is not None else _of_images_only(read, config)
    if found is None:
        return None, why.strip().splitlines()[0].removesuffix(".")
    if hasattr(found, "image_processor"):
        return found, ""
    return None, "there is a tokenizer, and no processor"  # AutoProcessor gives the former then


def without_videos(kind: Any) -> Any:
    """A processor class that takes images and text, and needs nothing for videos.

        processor = without_videos(Qwen2VLProcessor)(image_processor, tokenizer)

    Args:
        kind: one of transformers' processor classes.
    """
    attributes = [name for name in kind.get_attributes() if name != "video_processor"]

    @functools.wraps(kind.__init__)
    def make(self: Any, *args: Any, **kwargs: Any) -> None:
        kind.__init__(self, *args, **{"video_processor": None, **kwargs})

    own = {"get_attributes": classmethod(lambda cls: attributes), "__init__": make}
    return type(kind.__name__, (kind,), own)


def _of_images_only(read: Callable[[Any], Any], config: Any) -> Any:
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    kind = PROCESSOR_MAPPING.get(type(config), None)
    if kind is None or "video_processor" not in kind.get_attributes():
        return None
    try:
        return read(without_videos(kind))
    except (OSError, ValueError, ImportError, AttributeError):
        return None
