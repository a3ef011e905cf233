"""Images in any of their forms, as PIL images.

    pictures(Image.open("cat.png"))                 # one, or a list of them
    pictures(["cat.png", Path("dog.jpg")])          # files
    pictures(np.zeros((48, 48, 3), np.uint8))       # arrays and tensors: [y, x, 3] or [3, y, x]
    pictures(torch.rand(2, 3, 48, 48))              # several: [image, 3, y, x]

Numbers are 0 to 255 where they are whole, 0 to 1 where they are not.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from insitu.engine.values import describe
from insitu.errors import InputError, InputTypeError

_CHANNELS = (1, 3, 4)


def pictures(images: Any) -> list[Any]:
    """Every image given, in order, as PIL images in RGB.

    Args:
        images: one image or a list: PIL images, paths, arrays or tensors; None for none.

    Raises:
        InputError: a file is not there or holds no image, or numbers are out of range.
        InputTypeError: something is no image.
    """
    if images is None:
        return []
    if isinstance(images, Sequence) and not isinstance(images, (str, bytes)):
        return [picture for image in images for picture in pictures(image)]
    if _is_array(images) and len(images.shape) == 4:
        return [_painted(part) for part in images]
    return [_picture(images)]


def _picture(image: Any) -> Any:
    from PIL import Image

    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if isinstance(image, (str, Path)):
        return _opened(image, Image)
    if _is_array(image):
        return _painted(image)
    raise InputTypeError(
        f"images= was given {describe(image)}.",
        "an image is a PIL image, a path to a file, an array or a tensor.",
        'open it first: PIL.Image.open("photo.jpg").',
    )


def _opened(place: str | Path, image_module: Any) -> Any:
    if str(place).startswith(("http://", "https://", "data:")):
        raise InputError(
            f"the image {str(place)[:60]!r} is an address, not a file.",
            "Insitu reads images from this machine alone.",
            "download it, and pass the file or the image.",
        )
    try:
        with image_module.open(Path(place).expanduser()) as file:
            return file.convert("RGB")
    except (OSError, ValueError, SyntaxError, image_module.DecompressionBombError) as error:
        known = Path(place).expanduser().exists()
        raise InputError(
            f"the image {str(place)!r} cannot be read.",
            f"{type(error).__name__}: {error}." if known else "there is no such file.",
            "give a picture that PIL.Image.open reads, such as a PNG or JPEG file.",
        ) from error


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "__getitem__")


def _painted(array: Any) -> Any:
    """An array of numbers as a picture."""
    from PIL import Image

    pixels = (array if isinstance(array, torch.Tensor) else torch.as_tensor(array)).detach().cpu()
    if pixels.dim() == 2:
        pixels = pixels.unsqueeze(-1)
    first = pixels.dim() == 3 and pixels.shape[0] in _CHANNELS
    last = pixels.dim() == 3 and pixels.shape[-1] in _CHANNELS
    if not (first or last) or not pixels.numel():
        raise InputTypeError(
            f"images= was given {describe(array)}.",
            "an image has the shape [y, x, 3] or [3, y, x]; 1 for grey, 4 with opacity.",
            "turn the axes so that the colours come first or last.",
        )
    if first and (not last or isinstance(array, torch.Tensor)):
        pixels = pixels.permute(1, 2, 0)
    pixels = _bytes(pixels, array)
    if pixels.shape[-1] == 1:
        pixels = pixels.expand(-1, -1, 3)
    mode = "RGB" if pixels.shape[-1] == 3 else "RGBA"
    height, width = pixels.shape[:2]
    raw = pixels.contiguous().numpy().tobytes()
    return Image.frombytes(mode, (width, height), raw).convert("RGB")


def _bytes(pixels: torch.Tensor, given: Any) -> torch.Tensor:
    most = 1.0 if pixels.is_floating_point() else 255
    low, high = (float(end) for end in pixels.aminmax()) if pixels.dtype != torch.bool else (0, 1)
    if not (low >= 0 and high <= most):
        raise InputError(
            f"images= was given {describe(given)} with values from {low:g} to {high:g}.",
            f"numbers of this kind stand for brightness from 0 to {most:g}.",
            "scale it, or give what is preprocessed already by name: pixel_values=….",
        )
    if pixels.is_floating_point():
        pixels = (pixels.float() * 255).round()
    elif pixels.dtype == torch.bool:
        pixels = pixels.long() * 255
    return pixels.to(torch.uint8)
