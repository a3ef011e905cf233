"""PEFT adapters (LoRA, IA³, …), put into a model in place, and taken out again.

    model.add_adapter("path/to/french-lora")            # a folder, a hub name, or a peft config
    with model.trace("The Eiffel Tower is in"):
        low = model.transformer.h[0].attn.c_attn.lora_A["french-lora"].output
    model.set_adapter(None)                             # the base model
    model.remove_adapter("french-lora")                 # its modules are gone

peft replaces the modules that an adapter changes by ones that call them, under the same names:
`transformer.h.0.attn.c_attn` still stands there, is still what the block calls, and its output has
the adapter's part in it; the module it was is `c_attn.base_layer`. The model itself is not wrapped,
so every path begins as it did.
"""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from insitu.errors import AdapterError, MissingPackageError
from insitu.models import places
from insitu.models.loading import quiet_when_small, size_of_weights

_before: WeakKeyDictionary[nn.Module, "Before"] = WeakKeyDictionary()
"""What models with adapters were, before their first one."""
_OURS = ("peft_config", "_hf_peft_config_loaded", "_weight_conversions")
"""Attributes that adapters give a model."""
_SHOWN_MAX = 3
_CONTAINERS = (dict, list, set)
_NO_NAME = re.compile(r"\W+")


class Before:
    """What a model was before its first adapter, apart from its modules."""

    def __init__(self, model: nn.Module) -> None:
        self.flags = {path: weight.requires_grad for path, weight in model.named_parameters()}
        self.attributes = {name: vars(model)[name] for name in _OURS if name in vars(model)}

    def restore(self, model: nn.Module) -> None:
        """Give it back what it had."""
        for name in _OURS:
            vars(model).pop(name, None)
        vars(model).update(self.attributes)
        for path, weight in model.named_parameters():
            weight.requires_grad_(self.flags.get(path, weight.requires_grad))


def add(model: Any, source: Any, name: str | None) -> str:
    """Put an adapter into a transformers model and make it the active one; gives its name.

    Raises:
        AdapterError: it cannot be read, or does not fit; the model is then as it was.
        MissingPackageError: peft is not installed.
    """
    peft = _peft()
    name = name or _name_of(source)
    if name in names(model):
        raise AdapterError(
            f"there is an adapter {name!r} already.",
            f"the model has {_listed(names(model))}.",
            f"give another name, or take that one out: model.remove_adapter({name!r}).",
        )
    if not name or _NO_NAME.search(name.replace("-", "_")):
        raise AdapterError(
            f"{name!r} cannot be the name of an adapter.",
            "it becomes the name of modules, which may not have a dot in them.",
            "give name= letters, digits, - and _.",
        )
    flags = {weight: weight.requires_grad for weight in model.parameters()}
    before = Before(model)
    with _as_before_on_failure(model):
        if isinstance(source, peft.PeftConfig):  # a fresh one, to be trained
            _told(source, lambda: peft.inject_adapter_in_model(source, model, name))
            model._hf_peft_config_loaded = True
        else:
            _load(model, str(source), name)
            for weight, flag in flags.items():  # peft freezes the base model, for training
                weight.requires_grad_(flag)
        activate(model, name)
    _before.setdefault(model, before)
    return name


def activate(model: Any, name: str | None) -> None:
    """Make one adapter the active one, or with None let the base model run without any.

    Raises:
        AdapterError: there is none of that name.
    """
    if name is not None:
        _require(model, name)
    flags = {weight: weight.requires_grad for weight in model.parameters()}
    for layer in _layers(model):
        layer.enable_adapters(name is not None)
        if name is not None:
            layer.set_adapter(name)
    for weight, flag in flags.items():  # which weights are trained is not ours to change
        weight.requires_grad_(flag)


def remove(model: Any, name: str) -> None:
    """Take an adapter out; after the last one the model's own modules stand in their places.

    Raises:
        AdapterError: there is none of that name.
    """
    _require(model, name)
    was_active = active(model)
    with _unwarned():
        model.delete_adapter(name)
    left = names(model)
    if not left:
        _take_out(model)
        return
    activate(model, next((other for other in was_active if other in left), None))


def names(model: Any) -> tuple[str, ...]:
    """The adapters in a model, in the order they were added."""
    return tuple(getattr(model, "peft_config", None) or ())


def active(model: Any) -> tuple[str, ...]:
    """Those that are at work."""
    for layer in _layers(model):
        if layer.disable_adapters:
            return ()
        found = layer.active_adapters
        return tuple(found)
    return ()


def _load(model: Any, place: str, name: str) -> None:
    """Read an adapter's config and weights; every one of them must find its place."""
    place = str(Path(place).expanduser()) if place.startswith("~") else place
    folder = places.folder_of(place, {}, "adapter_config.json")
    if folder is None and place.startswith((".", "/")):
        raise AdapterError(
            f"the adapter {place!r} could not be opened.",
            "there is no such folder.",
            "give a folder with adapter_config.json, a hub name, or a peft config.",
        )
    size_bytes = 0 if folder is None else size_of_weights(folder)
    with _unlogged("transformers.integrations.peft"), quiet_when_small(size_bytes):
        info = _told(
            place,
            lambda: model.load_adapter(
                place if folder is None else str(folder),
                name,
                adapter_kwargs={"local_files_only": folder is not None},
                ignore_mismatched_sizes=True,
            ),
        )
    own = {path for path, _ in model.named_parameters() if name in path.split(".")}
    wrong = [
        f"{path} is {_shape(theirs)} there and {_shape(ours)} here"
        for path, theirs, ours in sorted(info.mismatched_keys)
    ]
    wrong += [f"{path} is not in it" for path in sorted(info.missing_keys & own)]
    wrong += [f"{path} has no place here" for path in sorted(info.unexpected_keys)]
    if wrong:
        raise _unfit(place, f"{'; '.join(wrong[:_SHOWN_MAX])}{_and_more(len(wrong))}")


def _told(source: Any, load: Any) -> Any:
    """What peft and transformers say of an adapter that does not fit, as one error."""
    from safetensors import SafetensorError

    try:
        with _unwarned():
            return load()
    except (ValueError, RuntimeError, OSError, KeyError, SafetensorError) as error:
        if isinstance(error, (AdapterError, MemoryError)) or "out of memory" in str(error):
            raise
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise _unfit(source, said) from error


def _take_out(model: Any) -> None:
    """Put every module that peft has replaced back where it was."""
    from peft.utils.other import AuxiliaryTrainingWrapper

    for parent in tuple(model.modules()):
        for key, child in tuple(parent._modules.items()):
            if isinstance(child, AuxiliaryTrainingWrapper):
                parent._modules[key] = child.original_module
            elif child is not None and hasattr(child, "get_base_layer") and _is_layer(child):
                parent._modules[key] = child.get_base_layer()
    if (before := _before.pop(model, None)) is not None:
        before.restore(model)


@contextmanager
def _as_before_on_failure(model: nn.Module) -> Iterator[None]:
    """Let the model be exactly what it was, should this fail."""
    modules = [(module, dict(module.__dict__), _inside(module)) for module in model.modules()]
    flags = {weight: weight.requires_grad for weight in model.parameters()}
    try:
        yield
    except BaseException:
        for module, attributes, inside in modules:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for container, content in inside:
                container.clear()
                (container.extend if isinstance(container, list) else container.update)(content)
        for weight, flag in flags.items():
            weight.requires_grad_(flag)
        raise
    for module, attributes, _ in modules:  # transformers switches to evaluation
        module.training = attributes["training"]


def _inside(module: nn.Module) -> list[tuple[Any, Any]]:
    """The containers among a module's attributes (its submodules are one), and what is in them."""
    values = module.__dict__.values()
    return [(value, value.copy()) for value in values if type(value) in _CONTAINERS]


@contextmanager
def _unwarned() -> Iterator[None]:
    """Without peft's warnings of what is meant here: several adapters, and removing one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
        warnings.filterwarnings("ignore", "Adapter .* was active which is now deleted")
        yield


@contextmanager
def _unlogged(name: str) -> Iterator[None]:
    """Keep a logger of transformers silent about what is told as an error."""
    thread = get_ident()

    def is_elsewhere(record: logging.LogRecord) -> bool:
        return record.thread != thread

    logger = logging.getLogger(name)
    logger.addFilter(is_elsewhere)
    try:
        yield
    finally:
        logger.removeFilter(is_elsewhere)


def _layers(model: nn.Module) -> list[Any]:
    from peft.utils import ModulesToSaveWrapper

    return [m for m in model.modules() if _is_layer(m) or isinstance(m, ModulesToSaveWrapper)]


def _is_layer(module: nn.Module) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(module, BaseTunerLayer)


def _name_of(source: Any) -> str:
    """The name of a folder, or the last part of the hub's name; "default" for a config."""
    if isinstance(source, (str, Path)):
        return _NO_NAME.sub("-", Path(source).expanduser().name).strip("-")
    return "default"


def _require(model: Any, name: str) -> None:
    if name not in names(model):
        known = names(model)
        raise AdapterError(
            f"there is no adapter {name!r}.",
            f"the model has {_listed(known)}." if known else "the model has none.",
            f"name one of those, or add it: model.add_adapter(folder, name={name!r}).",
        )


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingPackageError(
            "adapters need the package peft, which is not installed.",
            "it makes the modules that an adapter puts into a model.",
            "pip install peft",
        ) from error
    return peft


def _unfit(source: Any, why: str) -> AdapterError:
    called = repr(source) if isinstance(source, str) else type(source).__name__
    return AdapterError(
        f"the adapter {called} does not fit this model.",
        f"{why.rstrip('.')}. The model is as it was.",
        "give an adapter that was made for this model; its adapter_config.json names it.",
    )


def _shape(shape: Any) -> str:
    """A shape as errors write it: [8, 32]."""
    return str(list(shape))


def _listed(known: tuple[str, ...]) -> str:
    return ", ".join(map(repr, known)) or "none"


def _and_more(count: int) -> str:
    return f"; and {count - _SHOWN_MAX} more" if count > _SHOWN_MAX else ""
