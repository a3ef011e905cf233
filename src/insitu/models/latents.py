"""What latents look like: a pipeline's last lines, for those of any step.

decoded(pipeline, latents, "pil")       # a list of pictures
"""

import math
from typing import Any

import torch

from insitu.engine.values import describe
from insitu.errors import InputError, UsageError

_OUTPUT_TYPES = ("pil", "pt", "np")


def decoded(pipeline: Any, latents: torch.Tensor, output_type: str) -> Any:
    """Pictures, a tensor or an array of latents.

    Raises:
        InputError: these are no latents of this pipeline.
        UsageError: an unknown output type.
    """
    if output_type not in _OUTPUT_TYPES:
        raise UsageError(
            f"decode() was given output_type={output_type!r}.",
            f"it gives {', '.join(_OUTPUT_TYPES)}.",
            'write output_type="pil" for pictures, or leave it out.',
        )
    vae = getattr(pipeline, "vae", None)
    with torch.no_grad():
        pixels = _pixels(pipeline, vae, latents)
        shown = (pixels / 2 + 0.5).clamp(0, 1).float()
        if output_type == "pt":
            return shown
        array = shown.cpu().permute(0, 2, 3, 1).numpy()
    return array if output_type == "np" else pipeline.numpy_to_pil(array)


def _pixels(pipeline: Any, vae: Any, latents: Any) -> torch.Tensor:
    if not isinstance(latents, torch.Tensor) or latents.dim() not in (3, 4):
        raise _no_latents(pipeline, latents, "latents are a tensor [image, channel, height, width]")
    if vae is None:
        return latents
    config = vae.config
    channels = config.get("latent_channels") or 4
    if latents.dim() == 3:
        latents = _unpacked(pipeline, latents)
    if latents.shape[1] != channels:
        raise _no_latents(pipeline, latents, f"its latents have {channels} channels")
    weight = next(vae.parameters())
    latents = latents.to(getattr(vae, "device", weight.device), weight.dtype)
    mean, deviation = config.get("latents_mean"), config.get("latents_std")
    scale = config.get("scaling_factor") or 1.0
    if mean is not None and deviation is not None:
        shape = (1, -1, 1, 1)
        latents = latents * latents.new_tensor(deviation).view(shape) / scale
        latents = latents + latents.new_tensor(mean).view(shape)
    else:
        latents = latents / scale + (config.get("shift_factor") or 0.0)
    pixels: torch.Tensor = vae.decode(latents, return_dict=False)[0]
    return pixels


def _unpacked(pipeline: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents that stand as a row of 2 × 2 patches, as the square they are."""
    side = math.isqrt(latents.shape[1])
    unpack = getattr(pipeline, "_unpack_latents", None)
    if unpack is None or side * side != latents.shape[1]:
        raise _no_latents(pipeline, latents, "packed latents are unpacked as a square")
    pixels = 2 * side * pipeline.vae_scale_factor
    found: torch.Tensor = unpack(latents, pixels, pixels, pipeline.vae_scale_factor)
    return found


def _no_latents(pipeline: Any, value: Any, why: str) -> InputError:
    return InputError(
        f"decode() was given {describe(value)}, which are no latents of {type(pipeline).__name__}.",
        f"{why}.",
        "pass what a step gives: model.decode(model.scheduler.output).",
    )
