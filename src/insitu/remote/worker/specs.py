"""Which models a pool has, how each is opened, and what every model process is told.

ModelSpec("demo")
ModelSpec("pictures", source="/models/smolvlm", kind="VisionLanguageModel")
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from insitu.errors import UsageError
from insitu.remote.protocol import Trust

KINDS = ("LanguageModel", "VisionLanguageModel", "DiffusionModel")
UNKNOWN = "unknown"
"""The kind of a model that has not been opened yet, where nobody has named it."""
_KEPT_VARIABLES = (
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH",
    "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "XDG_CACHE_HOME",
    "CUDA_VISIBLE_DEVICES", "SSL_CERT_FILE", "TORCH_HOME",
)  # fmt: skip
"""Of the server's environment; keys and tokens stay with the server."""
_KEPT_FOR_ONESELF = ("HF_TOKEN", "HF_TOKEN_PATH")


@dataclass(frozen=True)
class ModelSpec:
    """A model that a pool can load."""

    name: str
    """What tasks ask for."""
    source: str = ""
    """`"demo"`, a folder or a hub name; the name itself by default."""
    kind: str = ""
    """Of `KINDS`; the model process finds it out where it is left open."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """For the class: `dtype`, `device_map`, …; plain JSON values."""
    known_as: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind and self.kind not in KINDS:
            raise UsageError(
                f"a model of the kind {self.kind!r} cannot be served.",
                f"the kinds are {', '.join(KINDS)}.",
                "name one of them, or leave it out: its files tell.",
            )

    @property
    def opened_as(self) -> str:
        """What the class is given."""
        return self.source or self.name


def spec_of(model: "str | ModelSpec") -> ModelSpec:
    """The spec of a name or folder; a folder is known by its last part too."""
    if isinstance(model, ModelSpec):
        return model
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return ModelSpec(model)
    whole = folder.resolve()
    others = tuple(name for name in dict.fromkeys((str(whole), whole.name)) if name != model)
    return ModelSpec(model, source=str(whole), known_as=others)


@dataclass(frozen=True)
class Settings:
    """What a model process is told when it starts."""

    spec: ModelSpec
    trust: Trust
    device: str = "cpu"
    threads: int = 1
    """For each job."""
    jobs: int = 2
    """At one time, and how many processes are kept ready for the next."""
    execute: str = "insitu.remote.blocks.run:execute"
    """What a job process calls: `module:function`."""
    apart: bool = False
    """The model computes in a process of its own, which no job shares memory with."""

    @property
    def inline(self) -> bool:
        """Jobs run in the model process itself: a CUDA context does not survive a fork."""
        return not self.apart and not self.device.startswith("cpu")

    def message(self) -> dict[str, Any]:
        """As JSON, for `read_settings`."""
        spec = {**vars(self.spec), "settings": dict(self.spec.settings)}
        return {**vars(self), "spec": spec}


def read_settings(message: dict[str, Any]) -> Settings:
    """The settings that `message` made."""
    spec = dict(message["spec"])
    spec["known_as"] = tuple(spec["known_as"])
    return Settings(**{**message, "spec": ModelSpec(**spec)})


def environment(trust: Trust) -> dict[str, str]:
    """The environment of a model process: what loading a model needs, and no key of anyone's."""
    kept = _KEPT_VARIABLES + (_KEPT_FOR_ONESELF if trust == "self" else ())
    own = {
        "TOKENIZERS_PARALLELISM": "false",  # its threads would not survive a fork
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    if trust != "self":
        own["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"
    return {name: os.environ[name] for name in kept if name in os.environ} | own
