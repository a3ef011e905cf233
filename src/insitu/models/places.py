"""Where the files of a model are: in a folder, in the hub's cache, or on the hub.

read(AutoConfig.from_pretrained, "openai-community/gpt2", {})    # from the cache, if it is there

What is cached is opened as the folder it is in. By its name, transformers and the hub's client
would ask the hub beforehand: for an adapter beside the weights, and for what calls itself an agent.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_OF_CACHE = ("cache_dir", "revision")
_CALLED = ("name_or_path", "_name_or_path")
"""What transformers' objects call the place that they come from."""


def read(load: Callable[..., Any], name: str, settings: Mapping[str, Any]) -> Any:
    """What a `from_pretrained` gives: of the files that are here, else of those on the hub.

    Args:
        load: takes a place, `local_files_only` and the settings.
        name: a folder, or a hub name.
        settings: for `load`.

    Raises:
        OSError: the files are neither here nor there.
    """
    own = {word: value for word, value in settings.items() if word != "local_files_only"}
    folder = folder_of(name, settings)
    if folder is not None:
        try:
            found = load(str(folder), local_files_only=True, **_without_cache(own, name, folder))
        except OSError:
            if folder == Path(name) or settings.get("local_files_only"):
                raise
        else:
            return _call(found, name, str(folder))
    return load(name, local_files_only=bool(settings.get("local_files_only")), **own)


def folder_of(name: str, settings: Mapping[str, Any], file: str = "config.json") -> Path | None:
    """The folder a name stands for: itself, or the one of the cache that has its file."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import try_to_load_from_cache

    own = {word: settings.get(word) for word in _OF_CACHE}
    try:
        found = try_to_load_from_cache(name, file, **own)
    except ValueError:  # no name of the hub's
        return None
    return Path(found).parent if isinstance(found, str) else None


def _without_cache(settings: dict[str, Any], name: str, folder: Path) -> dict[str, Any]:
    """The settings for a folder of the cache, which is of one revision."""
    if folder == Path(name):
        return settings
    return {word: value for word, value in settings.items() if word not in _OF_CACHE}


def _call(found: Any, name: str, folder: str) -> Any:
    """Let what was read from the cache say by which name, as it would have."""
    for part in found if isinstance(found, tuple) else (found, getattr(found, "config", None)):
        for word in _CALLED:
            if word in getattr(part, "__dict__", {}) and getattr(part, word) == folder:
                setattr(part, word, name)
    return found
