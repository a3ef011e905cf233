"""Whether a model's weights fit into memory: asked before they are read, and told when they do not.

    require("openai-community/gpt2", size_bytes, config, settings)
    with given("openai-community/gpt2", size_bytes):
        module = read()

Linux grants more memory than there is, and ends the process that then uses it: a notebook would be
gone without a word. So a model that cannot fit is refused before it is read.
"""

import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from insitu.errors import ModelMemoryError

_WORTH_ASKING_BYTES = 500_000_000
_ELSEWHERE = ("device_map", "quantization_config", "gguf_file", "tp_plan", "state_dict")
"""Settings with which the weights go elsewhere than here, or not as a whole."""
_SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory")


def require(name: str, size_bytes: int, config: Any, settings: dict[str, Any]) -> None:
    """Refuse weights that are larger than what is free.

    Args:
        name: the model's.
        size_bytes: of its files; 0 where that is not known.
        config: tells the dtype they are stored in.
        settings: as for `from_pretrained`.

    Raises:
        ModelMemoryError: they do not fit.
    """
    if size_bytes < _WORTH_ASKING_BYTES or any(settings.get(word) for word in _ELSEWHERE):
        return
    needed = int(size_bytes * _widening(config, settings.get("dtype")))
    free = free_bytes()
    if free is not None and needed > free:
        raise _too_large(name, f"its weights take {_told(needed)}, and {_told(free)} are free")


@contextmanager
def given(name: str, size_bytes: int) -> Iterator[None]:
    """Whatever says that memory ran out, as one error, with nothing of the model left."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        ran_out = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not ran_out and not any(sign in str(error) for sign in _SIGNS):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold what has been read so far
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        said = (str(error).strip() or "the system gave no more").splitlines()[0]
        size = f"its weights take {_told(size_bytes)}; " if size_bytes else ""
        raise _too_large(name, f"{size}{said}") from error


def free_bytes() -> int | None:
    """How much memory this process may still take; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if ":" in line}
    free = 1024 * (kilobytes.get("MemAvailable", 0) + kilobytes.get("SwapFree", 0))
    limit, used = _of_group("memory.max"), _of_group("memory.current")
    if limit is None or used is None:
        return free
    return min(free, limit - used + (_inactive_file() or 0))


def _of_group(file: str) -> int | None:
    """A number of the control group this process is in (a container's limit)."""
    try:
        text = (Path("/sys/fs/cgroup") / file).read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _inactive_file() -> int | None:
    """Bytes of the group that hold files, and are given up when memory is short."""
    try:
        lines = Path("/sys/fs/cgroup/memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), None)


def _widening(config: Any, dtype: Any) -> float:
    """How many bytes a stored byte becomes."""
    stored = getattr(config, "dtype", None) or torch.float32
    wanted = getattr(torch, dtype, stored) if isinstance(dtype, str) else dtype or stored
    if not isinstance(stored, torch.dtype) or not isinstance(wanted, torch.dtype):
        return 1.0
    return wanted.itemsize / stored.itemsize


def _told(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"


def _too_large(name: str, why: str) -> ModelMemoryError:
    return ModelMemoryError(
        f"there is not enough memory for the model {name!r}.",
        f"{why}. Nothing of it has been kept.",
        "give dtype=torch.bfloat16, device_map='auto' (what does not fit is kept on disk, with "
        "offload_folder=…), a quantization_config, or a smaller model.",
    )
