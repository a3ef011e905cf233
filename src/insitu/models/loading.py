"""Opening a language model by name: the demo, a folder, the cache, and only then the hub.

checkpoint = find("openai-community/gpt2", {"dtype": "bfloat16"})
model = checkpoint.load()               # a transformers model in evaluation mode
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from insitu.errors import MissingPackageError, ModelNotFoundError
from insitu.models import memory, places

_SMALL_BYTES = 200_000_000  # loads in well under two seconds
_OF_PLACE = ("revision", "trust_remote_code", "cache_dir", "token", "subfolder", "code_revision")
"""Settings of `from_pretrained` that say where a checkpoint is, or what may run from it."""
_OF_WEIGHTS = (
    "device_map", "max_memory", "offload_folder", "offload_buffers", "quantization_config",
    "variant", "dtype", "config", "state_dict", "tp_plan", "tp_size", "key_mapping",
    "use_safetensors", "weights_only", "use_kernels", "generation_config", "low_cpu_mem_usage",
    "ignore_mismatched_sizes", "local_files_only", "force_download",
)  # fmt: skip
"""Settings that say how its weights are read; what is left belongs into its config."""

BUILT_IN = {
    name: Path(__file__).parent / name.replace("-", "_") / "checkpoint"
    for name in ("demo", "demo-encoder")
}
"""The folders of the models that ship with insitu, by the names they are opened by."""

Choose = Callable[[Any, Any], Any]
"""Gives the model class for a config: `choose(transformers, config)`."""


@dataclass
class Checkpoint:
    """A model that has been found, and whose weights are still to be read."""

    name: str
    place: str
    config: Any
    kind: Any
    """The transformers class its weights are loaded into."""
    settings: dict[str, Any]
    """For `from_pretrained`."""

    def load(self) -> nn.Module:
        """Read the weights.

        Raises:
            ModelNotFoundError: the files are not there, or cannot be read.
            ModelMemoryError: there is not enough memory for them; nothing of them is left in it.
            MissingPackageError: a setting needs a package that is not installed.
        """
        memory.require(self.name, self._size_bytes, self.config, self.settings)
        with (
            _named(self.name),
            memory.given(self.name, self._size_bytes),
            quiet_when_small(self._size_bytes),
        ):
            module: nn.Module = places.read(self.kind.from_pretrained, self.place, self.settings)
        return module.eval()

    def companion(self, auto: Any) -> Any:
        """The tokenizer or processor beside the weights, by class or name: `"AutoTokenizer"`."""
        import transformers

        own = {name: self.settings[name] for name in _OF_PLACE if name in self.settings}
        with _named(self.name):
            kind = getattr(transformers, auto) if isinstance(auto, str) else auto
            return places.read(kind.from_pretrained, self.place, own)

    def read_config(self) -> Any:
        """The config as the settings change it."""
        import transformers

        if self.settings.get("config") is not None:
            return self.settings["config"]
        own = {k: v for k, v in self.settings.items() if k not in _OF_WEIGHTS}
        read = transformers.AutoConfig.from_pretrained
        config, _ = places.read(read, self.place, {**own, "return_unused_kwargs": True})
        return config

    @property
    def _size_bytes(self) -> int:
        """How large the files of the weights are; 0 where they are not here yet."""
        folder = places.folder_of(self.place, self.settings)
        return 0 if folder is None else size_of_weights(folder)


def find(name: str, settings: dict[str, Any], choose: Choose | None = None) -> Checkpoint:
    """The checkpoint of that name, its config read and its weights not.

    Args:
        name: `"demo"`, a folder, or a hub name.
        settings: for `from_pretrained`.
        choose: gives the model class for a config; `language_class` by default.

    Raises:
        ModelNotFoundError: there is no such folder, and neither the cache nor the hub has the name.
    """
    import transformers

    settings = {"trust_remote_code": False, **settings}  # None would ask, on the keyboard
    if name in BUILT_IN:  # their files are in float16, to be small
        settings.setdefault("dtype", "float32")
    if "torch_dtype" in settings:  # its name in older releases
        settings["dtype"] = settings.pop("torch_dtype")
    place = str(BUILT_IN.get(name, name))
    if Path(place).expanduser().is_dir():
        place = str(Path(place).expanduser())
        _require_model(name, Path(place))
    elif place.startswith((".", "/", "~")):
        raise _not_found(name, "there is no such folder")
    found = Checkpoint(name, place, None, None, settings)
    with _named(name):
        try:
            found.config = found.read_config()
        except ValueError as error:  # a folder, or a config.json, of something else
            raise _unreadable(name, error) from error
    found.kind = (choose or language_class)(transformers, found.config)
    return found


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Whatever says that files are missing or unreadable, as one error about that model."""
    from safetensors import SafetensorError

    try:
        yield
    except (ModelNotFoundError, MissingPackageError):
        raise
    except (OSError, SafetensorError) as error:
        raise _not_found(name, str(error).strip().splitlines()[0]) from error
    except ImportError as error:
        raise MissingPackageError(
            f"the model {name!r} needs a package that is not installed.",
            f"{error!s}".strip().splitlines()[0],
            "install it, or leave out the setting that needs it.",
        ) from error


def _require_model(name: str, folder: Path) -> None:
    """Refuse a folder that holds an adapter, and name its model."""
    file = folder / "adapter_config.json"
    if (folder / "config.json").exists() or not file.exists():
        return
    base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    raise _not_found(
        name,
        "the folder holds a PEFT adapter, and no model",
        f"open its model, LanguageModel({base or 'base'!r}), and give it the adapter: "
        f"model.add_adapter({name!r}).",
    )


def size_of_weights(folder: Path) -> int:
    """How many bytes of weights a folder holds, those of a model or of an adapter."""
    files = [*folder.glob("*.safetensors")] or [*folder.glob("*.bin")]
    return sum(file.stat().st_size for file in files)


@contextmanager
def quiet_when_small(size_bytes: int) -> Iterator[None]:
    """No progress bar for weights that load in a blink."""
    import transformers

    logging = transformers.utils.logging
    if not 0 < size_bytes < _SMALL_BYTES or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def language_class(transformers: Any, config: Any) -> Any:
    """The class the checkpoint was saved from, or the one with a head for its kind."""
    for name in getattr(config, "architectures", None) or ():
        if hasattr(transformers, name):
            return getattr(transformers, name)
    known = transformers.MODEL_FOR_MASKED_LM_MAPPING, transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    names = ["AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForMaskedLM", "AutoModel"]
    if getattr(config, "is_encoder_decoder", False):
        names.insert(0, "AutoModelForSeq2SeqLM")
    elif type(config) in known[0] and not getattr(config, "is_decoder", False):
        names.insert(0, "AutoModelForMaskedLM")
    own = getattr(config, "auto_map", None) or {}  # code that the checkpoint brings
    for name in names:
        if name in own or type(config) in getattr(transformers, name)._model_mapping:
            return getattr(transformers, name)
    return transformers.AutoModelForCausalLM


def tokenizer_of(model: nn.Module) -> Any:
    """The tokenizer of a loaded model, where it says from which folder or cached name it came."""
    return companion_of(model, "AutoTokenizer")


def companion_of(model: nn.Module, auto: Any) -> Any:
    """The tokenizer or processor of a loaded model; None where it cannot be had locally."""
    import transformers

    place = getattr(model, "name_or_path", "")
    folder = places.folder_of(place, {}) if place else None
    if folder is None:
        return None
    kind = getattr(transformers, auto) if isinstance(auto, str) else auto
    try:
        return places.read(kind.from_pretrained, place, {"local_files_only": True})
    except (OSError, ValueError):
        return None  # a folder of weights alone


def with_padding(tokenizer: Any, side: str = "left") -> Any:
    """The tokenizer, padding at that side, and with something to pad with."""
    if tokenizer is not None:
        tokenizer.padding_side = side
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def _unreadable(name: str, error: ValueError) -> ModelNotFoundError:
    said = str(error).strip().splitlines()[0]
    if "trust_remote_code" not in str(error):
        return _not_found(name, said)
    return _not_found(
        name,
        "its checkpoint brings Python code of its own, which would run in this process",
        "read that code; if you trust it, give trust_remote_code=True.",
    )


def _not_found(name: str, why: str, next: str = "") -> ModelNotFoundError:
    return ModelNotFoundError(
        f"the model {name!r} could not be opened.",
        f"{why}.".replace("..", "."),
        next
        or 'give a folder with config.json and weights, a hub name, or "demo", which is built in.',
    )
