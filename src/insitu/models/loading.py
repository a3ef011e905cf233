"""Opening a language model by name: the demo, a folder, the cache, and only then the hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from insitu.errors import ModelNotFoundError

_SMALL_BYTES = 200_000_000  # loads in well under two seconds

DEMO = Path(__file__).parent / "demo" / "checkpoint"


def load(name: str, settings: dict[str, Any], *, with_tokenizer: bool) -> tuple[nn.Module, Any]:
    """The model of that name in evaluation mode, with its tokenizer.

    Raises:
        ModelNotFoundError: there is no such folder, and neither the cache nor the hub has the name.
    """
    import transformers

    if name == "demo":
        settings.setdefault("dtype", "float32")
    if "torch_dtype" in settings:  # its name in older releases
        settings["dtype"] = settings.pop("torch_dtype")
    place = str(DEMO) if name == "demo" else name
    if Path(place).expanduser().is_dir():
        place = str(Path(place).expanduser())
    elif place.startswith((".", "/", "~")):
        raise _not_found(name, "there is no such folder")
    local = _is_local(place)
    try:
        with _quiet_when_small(place, transformers):
            return _open(place, local, settings, with_tokenizer, transformers)
    except OSError as error:
        raise _not_found(name, str(error).strip().splitlines()[0]) from error


def _open(
    place: str, local: bool, settings: dict[str, Any], with_tokenizer: bool, transformers: Any
) -> tuple[nn.Module, Any]:
    try:
        config = transformers.AutoConfig.from_pretrained(place, local_files_only=local)
    except ValueError as error:  # a folder, or a config.json, of something else
        raise OSError(str(error)) from error
    kind = _model_class(transformers, config)
    model = kind.from_pretrained(place, local_files_only=local, **settings).eval()
    if not with_tokenizer:
        return model, None
    return model, transformers.AutoTokenizer.from_pretrained(place, local_files_only=local)


@contextmanager
def _quiet_when_small(place: str, transformers: Any) -> Iterator[None]:
    """No progress bar for weights that load in a blink."""
    logging = transformers.utils.logging
    files = Path(place).glob("*.safetensors") if Path(place).is_dir() else ()
    size_bytes = sum(file.stat().st_size for file in files)
    if not 0 < size_bytes < _SMALL_BYTES or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def _is_local(place: str) -> bool:
    """Whether a model can be opened without asking the hub."""
    if Path(place).is_dir():
        return True
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(place, "config.json"), str)


def _model_class(transformers: Any, config: Any) -> Any:
    """The class the checkpoint was saved from, or the causal model for its kind."""
    for name in getattr(config, "architectures", None) or ():
        if hasattr(transformers, name):
            return getattr(transformers, name)
    return transformers.AutoModelForCausalLM


def forward_settings() -> set[str]:
    """The names that a transformers forward takes besides its own parameters."""
    from transformers.utils import TransformersKwargs

    return set(TransformersKwargs.__annotations__)


def tokenizer_of(model: nn.Module) -> Any:
    """The tokenizer of a loaded model, where it says from which folder or cached name it came."""
    import transformers

    place = getattr(model, "name_or_path", "")
    if not place or not _is_local(place):
        return None
    try:
        return transformers.AutoTokenizer.from_pretrained(place, local_files_only=True)
    except (OSError, ValueError):
        return None  # a folder of weights alone


def with_padding(tokenizer: Any) -> Any:
    """The tokenizer, padding on the left: the last position is then each row's last token."""
    if tokenizer is not None:
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def _not_found(name: str, why: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"the model {name!r} could not be opened.",
        f"{why}.".replace("..", "."),
        'give a folder with config.json and weights, a hub name, or "demo", which is built in.',
    )
