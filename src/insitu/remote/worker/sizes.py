"""How large a model's weights will be, before it is loaded.

files_bytes(ModelSpec("./my-model")), files_bytes(ModelSpec("openai-community/gpt2"))

Of a model of the hub what its cache has; 0 where nothing is known yet.
"""

import os
import re
from pathlib import Path

from insitu.remote.worker.specs import ModelSpec

_SHIPPED, _MODELS = ("demo", "demo-encoder"), Path(__file__).parents[2] / "models"
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def files_bytes(spec: ModelSpec) -> int:
    """What its files of weights take; either the safetensors or what there is instead."""
    folder = Path(spec.opened_as)
    if spec.opened_as in _SHIPPED:
        folder = _MODELS / spec.opened_as.replace("-", "_")
    elif not folder.is_dir():
        found = _in_cache(spec.opened_as, str(spec.settings.get("revision", "main")))
        if found is None:
            return 0
        folder = found
    files = [it for it in folder.rglob("*") if it.is_file()]
    for kind in (".safetensors", ".bin"):
        if size := sum(it.stat().st_size for it in files if it.suffix == kind):
            return size
    return 0


def _in_cache(name: str, revision: str) -> Path | None:
    """The folder of a model in the hub's cache, as its own library lays it out."""
    if not _HUB_NAME.fullmatch(name) or "/" in revision or ".." in revision:
        return None
    folder = _cache() / f"models--{name.replace('/', '--')}"
    ref = folder / "refs" / revision
    at = ref.read_text().strip() if ref.is_file() else revision
    found = folder / "snapshots" / at
    return found if found.is_dir() else None


def _cache() -> Path:
    if said := os.environ.get("HF_HUB_CACHE"):
        return Path(said).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{base}/huggingface"
    return Path(home).expanduser() / "hub"
