"""What a diffusion pipeline is called with: told apart, checked, and joined. Pure.

given = told_apart(pipeline, "generate", ("a red circle",), {"seed": 0, "guidance_scale": 5})
given.inputs, given.settings        # {"prompt": "a red circle"}, {"guidance_scale": 5}
joined(pipeline, settings, [given, other])
"""

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch

from insitu.engine import paths
from insitu.engine.batch import Rows, plan
from insitu.engine.values import describe
from insitu.errors import InputError, InputTypeError, UsageError

OWN = ("seed", "grad")
"""Our words beside the pipeline's settings."""
STEPS = ("num_inference_steps", "timesteps", "sigmas")
"""What says how many steps are taken."""
_TEXTS = ("prompt", "negative_prompt")
_LABELS = "class_labels"
_OF_PROMPTS = (_LABELS, "latents", "image", "mask_image", "control_image", "batch_size", "seed")
_NEEDS_IMAGE = ("Img2Img", "Inpaint", "Upscale", "Pix2Pix", "ControlNet", "Depth2Img")


@dataclass
class Given:
    """One prompt, or several given together, and what goes with it."""

    inputs: dict[str, Any] = field(default_factory=dict)
    """What belongs to its images: prompts, labels, latents, seeds."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What belongs to the run."""

    @property
    def count(self) -> int:
        """How many prompts these are."""
        for name in ("prompt", _LABELS):
            if (value := self.inputs.get(name)) is not None:
                return 1 if isinstance(value, (str, int)) else len(value)
        for name, value in self.inputs.items():
            if isinstance(value, torch.Tensor) and (_is_tensors(name) or name == "latents"):
                return int(value.shape[0])
        return int(self.inputs.get("batch_size", 1))


def parameters(pipeline: Any) -> dict[str, inspect.Parameter]:
    """What a call of a pipeline takes, by name."""
    found = dict(inspect.signature(type(pipeline).__call__).parameters)
    return {
        name: one
        for name, one in found.items()
        if name != "self" and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    }


def is_prompted(pipeline: Any, inputs: dict[str, Any]) -> bool:
    """Whether a pipeline can run on these: some draw without being told what."""
    takes = parameters(pipeline)
    if "prompt" in takes and takes["prompt"].default in (None, inspect.Parameter.empty):
        return any(inputs.get(name) is not None for name in ("prompt", "prompt_embeds"))
    return _LABELS not in takes or inputs.get(_LABELS) is not None


def told_apart(pipeline: Any, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Given:
    """What belongs to the images of a call, and what to the run; both checked.

    Raises:
        InputTypeError: a prompt of a wrong kind.
        InputError: an image is needed, or there are too many seeds.
        UsageError: a setting that the pipeline does not know, or cannot run with.
    """
    kwargs = {**_first(pipeline, method, args), **kwargs}
    takes = parameters(pipeline)
    _require_known(pipeline, method, kwargs, takes)
    given = Given()
    for name, value in kwargs.items():
        (given.inputs if _is_of_prompts(name) else given.settings)[name] = value
    _check_texts(pipeline, method, given.inputs)
    _check_counts(method, kwargs)
    if method == "invoke" and given.settings:
        name = next(iter(given.settings))
        raise UsageError(
            f"invoke() was given {name}, a setting of the whole run.",
            "the prompts of a trace are drawn in one run, which has one such setting.",
            f"give it to the trace: model.generate({name}={given.settings[name]!r}).",
        )
    return given


def require_image(pipeline: Any, inputs: dict[str, Any]) -> None:
    """Refuse to run a pipeline that begins with an image without one.

    Raises:
        InputError: there is none.
    """
    kind = type(pipeline).__name__
    takes = parameters(pipeline)
    for name in ("image", "mask_image", "control_image"):
        words = _NEEDS_IMAGE if name == "image" else ("Inpaint",) if name == "mask_image" else ()
        needed = name in takes and (
            takes[name].default is inspect.Parameter.empty or any(word in kind for word in words)
        )
        if needed and inputs.get(name) is None and inputs.get(f"{name}s") is None:
            raise InputError(
                f"{kind} was given no {name}.",
                f"it makes its images of one that is there, and takes it as {name}=.",
                f"pass it: model.generate(prompt, {name}=picture), a PIL image or a tensor "
                "[batch, channel, height, width].",
            )


def joined(
    pipeline: Any, shared: dict[str, Any], given: list[Given]
) -> tuple[dict[str, Any], tuple[Rows, ...]]:
    """The inputs of several invokes as those of one call, and which prompts are whose.

    Raises:
        InputError: they cannot be joined.
    """
    each = [Given({**shared, **one.inputs}) for one in given]
    counts = [one.count for one in each]
    names = dict.fromkeys(name for one in each for name in one.inputs)
    inputs: dict[str, Any] = {}
    for name in names:
        values = [one.inputs.get(name) for one in each]
        if name == "batch_size":
            inputs[name] = sum(counts)
        elif name == "seed":
            inputs[name] = _joined_seeds(values, counts)
        elif all(value is None or _is_text(value) for value in values):
            inputs[name] = _joined_texts(pipeline, name, each, counts)
        else:
            inputs[name] = _joined_values(name, values, counts)
    return inputs, plan(counts)


def seeds(given: Any, count: int, images: int) -> list[int] | None:
    """A seed for each image: the first of every prompt has the seed itself, the next one more.

    Raises:
        InputError: as many were given as there are neither prompts nor images.
    """
    if given is None:
        return None
    if isinstance(given, int):
        given = [given] * count
    if len(given) == count:
        return [_fresh(seed) + number for seed in given for number in range(images)]
    if len(given) != count * images:
        what = f"{count} prompts" + (f" with {images} images each" if images > 1 else "")
        raise InputError(
            f"{len(given)} seeds were given for {what}.",
            "an image has one seed: seeds are for the prompts, or for all their images.",
            "pass one seed for all, one for each prompt, or one for each image.",
        )
    return [_fresh(seed) for seed in given]


def as_called(inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs as pipelines take them: texts that go together are of one kind."""
    prompt = inputs.get("prompt")
    if isinstance(prompt, list):
        more = {
            name: [value] * len(prompt)
            for name, value in inputs.items()
            if isinstance(value, str) and name != "prompt"
        }
        return {**inputs, **more}
    if isinstance(inputs.get(_LABELS), int):
        return {**inputs, _LABELS: [inputs[_LABELS]]}
    return dict(inputs)


def _first(pipeline: Any, method: str, args: tuple[Any, ...]) -> dict[str, Any]:
    """What was given without a name, under its name."""
    if not args:
        return {}
    if len(args) > 1:
        raise InputTypeError(
            f"{method}() takes one prompt, and was given {len(args)}.",
            "several prompts are one argument, a list, and become one batch.",
            f"write model.{method}([first, second, …]).",
        )
    takes = parameters(pipeline)
    for name in ("prompt", _LABELS, "image"):
        if name in takes:
            return {name: args[0]}
    raise InputTypeError(
        f"{type(pipeline).__name__} takes no prompt, and was given {describe(args[0])}.",
        "it draws what it has learned, without being told what.",
        f"write model.{method}(), and batch_size= for several images.",
    )


def _require_known(
    pipeline: Any, method: str, kwargs: dict[str, Any], takes: dict[str, Any]
) -> None:
    for name in kwargs:
        if name in takes or name in OWN:
            continue
        close = paths.nearest(name, (*takes, *OWN))
        raise UsageError(
            f"{method}() was given {name}, which is not understood.",
            f"{type(pipeline).__name__} has no such setting.",
            f"did you mean {close[0]}?" if close else "leave it out.",
        )
    if kwargs.get("seed") is not None and "generator" not in takes:
        raise UsageError(
            f"{method}() was given a seed.",
            f"{type(pipeline).__name__} takes no generator that a seed could begin.",
            "leave it out, and call torch.manual_seed before.",
        )
    if kwargs.get("generator") is not None and (method == "invoke" or "seed" in kwargs):
        raise UsageError(
            f"{method}() was given a generator"
            + (" and a seed." if "seed" in kwargs else ", and there may be other invokes."),
            "a seed makes the generators, one for each image.",
            "pass seed= alone.",
        )


def _check_texts(pipeline: Any, method: str, inputs: dict[str, Any]) -> None:
    for name in [name for name in inputs if name.startswith(_TEXTS)]:
        value = inputs[name]
        if _is_tensors(name) or value is None:
            continue
        if isinstance(value, tuple):
            inputs[name] = value = list(value)
        if not _is_text(value) or value == []:
            raise InputTypeError(
                f"{method}() was given {name}={_shown(value)}.",
                "a pipeline draws from text: one text, or a list of texts.",
                f'pass text: model.{method}("a red circle"), or embeddings as prompt_embeds=.',
            )
        count = Given(inputs).count
        if isinstance(value, list) and len(value) != count:
            raise InputError(
                f"{method}() was given {len(value)} texts as {name}, and {count} as prompt.",
                "each prompt has one.",
                "give as many, or one text for all.",
            )
    if inputs.get(_LABELS) is not None:
        inputs[_LABELS] = _labels(pipeline, method, inputs[_LABELS])


def _labels(pipeline: Any, method: str, value: Any) -> list[int]:
    """Class labels as numbers; names are looked up in the pipeline's own."""
    values = value.reshape(-1).tolist() if isinstance(value, torch.Tensor) else value
    values = list(values) if isinstance(values, (list, tuple)) else [values]
    known: dict[str, int] = getattr(pipeline, "labels", None) or {}
    found: list[int] = []
    for one in values:
        if isinstance(one, int) and not isinstance(one, bool):
            found.append(one)
        elif one in known:
            found.append(known[one])
        else:
            close = paths.nearest(one, known) if isinstance(one, str) else []
            raise InputTypeError(
                f"{method}() was given the class label {one!r}.",
                f"{type(pipeline).__name__} draws classes: whole numbers, or names it knows "
                f"(it knows {len(known)}).",
                f"did you mean {close[0]!r}?" if close else "pass the number of a class.",
            )
    if not found:
        raise InputTypeError(
            f"{method}() was given no class label.",
            "the list is empty.",
            f"pass one or several: model.{method}([0, 3]).",
        )
    return found


def _check_counts(method: str, kwargs: dict[str, Any]) -> None:
    for name in ("num_inference_steps", "num_images_per_prompt", "batch_size"):
        value = kwargs.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(
                f"{method}() was given {name}={value!r}.",
                "it is a count, of one or more.",
                f"write {name}=1 or more, or leave it out.",
            )
    seed = kwargs.get("seed")
    several = list(seed) if isinstance(seed, (list, tuple, range)) else [seed]
    are_whole = all(isinstance(one, int) and not isinstance(one, bool) for one in several)
    if seed is not None and not are_whole:
        raise UsageError(
            f"{method}() was given seed={_shown(seed)}.",
            "a seed is a whole number, and makes the noise an image begins with.",
            "write seed=0, or a list with one for each prompt or image.",
        )
    if isinstance(seed, (tuple, range)):
        kwargs["seed"] = several


def _joined_texts(pipeline: Any, name: str, each: list[Given], counts: list[int]) -> list[str]:
    negative = name.startswith("negative_prompt")
    texts: list[str] = []
    for number, (one, count) in enumerate(zip(each, counts, strict=True), 1):
        value = one.inputs.get(name)
        if value is None and negative and not _has_own_empty(pipeline):
            value = ""
        if value is None and name != "prompt" and not negative:
            value = one.inputs.get("prompt")
        if value is None:
            raise _not_for_all(name, number)
        texts += [value] * count if isinstance(value, str) else value
    return texts


def _has_own_empty(pipeline: Any) -> bool:
    """Whether no negative prompt is something else than an empty one (Stable Diffusion XL)."""
    return bool(getattr(pipeline.config, "force_zeros_for_empty_prompt", False))


def _joined_seeds(values: list[Any], counts: list[int]) -> list[int | None]:
    found: list[int | None] = []
    for value, count in zip(values, counts, strict=True):
        own = value if isinstance(value, list) else [value] * count
        if len(own) != count:
            seeds(own, count, 1)  # says what is wrong
        found += own
    return found


def _joined_values(name: str, values: list[Any], counts: list[int]) -> Any:
    for number, value in enumerate(values, 1):
        if value is None:
            raise _not_for_all(name, number)
    if all(isinstance(value, torch.Tensor) for value in values):
        try:
            return torch.cat(
                [
                    v.expand(n, *v.shape[1:]) if v.shape[0] == 1 and n > 1 else v
                    for v, n in zip(values, counts, strict=True)
                ]
            )
        except RuntimeError as error:
            raise InputError(
                f"the invokes' {name} cannot be joined: {', '.join(map(describe, values))}.",
                "they become rows of one tensor.",
                "give them the same shape apart from the first dimension.",
            ) from error
    lists = [
        value if isinstance(value, list) else [value] * count
        for value, count in zip(values, counts, strict=True)
    ]
    return [one for many in lists for one in many]


def _not_for_all(name: str, number: int) -> InputError:
    return InputError(
        f"{name} was given to some invokes, and not to invoke {number}.",
        "the inputs of invokes are joined into one batch.",
        f"give {name} to every invoke, or to none.",
    )


def _shown(value: Any) -> str:
    """A value as an error shows it: as it was written, where that is short."""
    written = repr(value)
    return written if len(written) <= 40 and "\n" not in written else describe(value)


def _fresh(seed: int | None) -> int:
    """The seed; where none was given, one of chance."""
    return int(torch.randint(0, 2**62, ()).item()) if seed is None else seed


def _is_of_prompts(name: str) -> bool:
    return name in _OF_PROMPTS or name.startswith(_TEXTS) or _is_tensors(name)


def _is_tensors(name: str) -> bool:
    return name.endswith(("_embeds", "_mask")) and name != "mask_image"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(part, str) for part in value)
    )
