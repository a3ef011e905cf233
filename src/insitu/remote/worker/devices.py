"""Which devices this machine has, asked without torch in this process.

devices.auto()                      # "cuda" where torch finds a GPU, else "cpu"
devices.memory_bytes("cuda:1")      # of that one; None where a model is in the machine's own

torch takes 200 MB and seconds, which a process that computes nothing does without: another is
asked, once, and only where the system shows a device at all.
"""

import subprocess
import sys
from functools import cache
from pathlib import Path

_NODES = ("nvidia[0-9]*", "nvidiactl", "kfd", "dxg")
"""Under /dev: of NVIDIA's driver, of AMD's, and of Windows' for Linux."""
_ASK = """
import torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
print(*(torch.cuda.get_device_properties(n).total_memory for n in range(count)))
"""
_ASK_S = 120.0


def auto() -> str:
    """Where models go when nothing else was said."""
    return "cuda" if _memories() else "cpu"


def memory_bytes(device: str) -> int | None:
    """The memory of the device, or of all of them where models are spread."""
    kind, _, number = device.partition(":")
    if kind == "auto":
        return sum(_memories()) or None
    if kind != "cuda" or not _memories():
        return None
    at = int(number or 0) if (number or "0").isdigit() else 0
    return _memories()[at] if at < len(_memories()) else None


@cache
def _memories() -> tuple[int, ...]:
    """Of each device that torch can use, in bytes."""
    if not any(_nodes()):
        return ()
    command = [sys.executable, "-P", "-c", _ASK]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_S, check=True)
    except (subprocess.SubprocessError, OSError):  # a driver that hangs, or no torch at all
        return ()
    return tuple(int(it) for it in asked.stdout.split() if it.isdecimal())


def _nodes() -> list[Path]:
    return [it for pattern in _NODES for it in Path("/dev").glob(pattern)]
