"""The files of a diffusion pipeline: where they are, how large, and what is wrong with them.

place = place_of("demo", {})            # its folder, checked; a hub name stays what it is
size_of(Path(place) / "unet", None)     # bytes of weights
"""

import contextlib
import json
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from insitu.errors import ModelNotFoundError
from insitu.models import places

BUILT_IN = {"demo": Path(__file__).parent / "demo_diffusion" / "checkpoint"}
"""The folders of the pipelines that ship with insitu, by the names they are opened by."""

INDEX = "model_index.json"


def place_of(name: str, given: Container[str]) -> str:
    """The folder of a name, in which every part is that is not given; or the name, for the hub."""
    place = str(BUILT_IN.get(name, name))
    folder = Path(place).expanduser()
    if folder.is_dir():
        if not (folder / INDEX).exists():
            alone = (folder / "config.json").exists()
            raise _not_found(
                name,
                f"the folder holds no {INDEX}, which every pipeline's has"
                + ("; it holds one model" if alone else ""),
            )
        if missing := _parts_missing(folder, given):
            raise _not_found(name, f"its {INDEX} names {missing[0]}, and it has no such folder")
        return str(folder)
    if place.startswith((".", "/", "~")):
        raise _not_found(name, "there is no such folder")
    return place


def folder_of(name: str, settings: dict[str, Any]) -> Path | None:
    """The folder of a pipeline's files; None where they are not here yet."""
    return places.folder_of(place_of(name, settings), settings, INDEX)


def is_local(place: str, settings: dict[str, Any]) -> bool:
    """Whether a pipeline can be opened without asking the hub."""
    if Path(place).is_dir():
        return True
    from huggingface_hub import try_to_load_from_cache

    where = {key: settings.get(key) for key in ("cache_dir", "revision")}
    return isinstance(try_to_load_from_cache(place, INDEX, **where), str)


def size_bytes_of(place: str, settings: dict[str, Any]) -> int:
    """How large the files are that will be read; 0 where they are not here."""
    parts = [part for part in Path(place).glob("*") if part.is_dir() and part.name not in settings]
    return sum(size_of(part, settings.get("variant")) for part in parts)


def size_of(folder: Path, variant: str | None) -> int:
    """How many bytes of weights a component's folder holds, of the variant that is read."""
    files = [*folder.glob("*.safetensors")] or [*folder.glob("*.bin")]
    of_variant = [file for file in files if variant and f".{variant}" in file.name]
    plain = [file for file in files if file.name.count(".") == 1]
    return sum(file.stat().st_size for file in of_variant or plain or files)


@contextlib.contextmanager
def named(name: str) -> Iterator[None]:
    """Whatever says that files are missing or unreadable, as one error about that pipeline."""
    from safetensors import SafetensorError

    try:
        yield
    except ModelNotFoundError:
        raise
    except (
        OSError, ValueError, KeyError, AttributeError, SafetensorError, RuntimeError,
    ) as error:  # fmt: skip
        if isinstance(error, RuntimeError) and "mismatch" not in str(error):
            raise  # memory that has run out, for one
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise _not_found(name, why) from error


def _parts_missing(folder: Path, given: Container[str]) -> list[str]:
    try:
        index = json.loads((folder / INDEX).read_text())
    except ValueError:
        return []  # diffusers says what is wrong with it
    return [
        part
        for part, entry in index.items()
        if isinstance(entry, list) and entry[0] and part not in given
        if not (folder / part).is_dir()
    ]


def _not_found(name: str, why: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"the pipeline {name!r} could not be opened.",
        f"{why}.".replace("..", "."),
        f"give a pipeline's folder ({INDEX} and a folder for each component), a hub name, or "
        '"demo", which is built in.',
    )
