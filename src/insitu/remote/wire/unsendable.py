"""What cannot be sent, why, and what to do in its place: told before anything is sent."""

import sys
from collections.abc import Mapping
from typing import Any

from insitu.errors import NotSendableError

_ONE_SIDE = "it lives in this process alone"


def unsendable(said: str, value: Any, at: str, why: str = "", next: str = "") -> NotSendableError:
    """The error for a value that cannot be sent."""
    known_why, known_next = _advice(value)
    return NotSendableError(
        f"cannot send {quoted(said)} ({kind_of(value)}){f' used at {at}' if at else ''}.",
        f"{why or known_why}.",
        f"{next or known_next}.",
    )


def circular(said: str, value: Any, at: str) -> NotSendableError:
    """The error for a value that contains itself."""
    return unsendable(
        said, value, at, "it contains itself, and a message has an end", "send its parts"
    )


def too_deep(said: str, value: Any, at: str, most: int) -> NotSendableError:
    """The error for a value that is nested too deep."""
    why = f"it is nested more than {most} deep"
    return unsendable(said, value, at, why, "send a flatter value, such as a list of its parts")


def quoted(said: str) -> str:
    """A name in quotes; an expression or a phrase as it is."""
    return f"'{said}'" if said.isidentifier() else said


def kind_of(value: Any) -> str:
    """A class as users know it: `torch.optim.Adam`."""
    kind = type(value)
    module, name = kind.__module__, kind.__qualname__
    if module in ("builtins", "__main__"):
        return name
    parts = module.split(".")
    for count in range(1, len(parts)):
        shorter = ".".join(parts[:count])
        if vars(sys.modules.get(shorter, sys)).get(name) is kind:
            return f"{shorter}.{name}"
    return f"{module}.{name}"


_ADVICE: Mapping[str, tuple[str, str]] = {
    "torch.optim.Optimizer": (
        "an optimizer belongs to parameters in this process",
        "send its state_dict() or build it inside the block",
    ),
    "torch.nn.Module": (
        "it is no part of the traced model, and its weights are here",
        "send its state_dict(), or its weights as tensors, and build it inside the block; "
        "or use it in `with insitu.local():`",
    ),
    "torch.utils.data.DataLoader": (
        f"{_ONE_SIDE}",
        "send one batch at a time, or read it in `with insitu.local():`",
    ),
    "torch.Generator": (
        "the state of a random generator belongs to its device",
        "make it inside the block: torch.Generator().manual_seed(0)",
    ),
    "torch.Tensor": (
        "tensors go as plain numbers in rows, and this one is sparse, quantized, nested, "
        "without numbers, or of a class of its own",
        "send t.to_dense(), t.dequantize() or its parts; a weight of the model is read inside "
        "the block",
    ),
    "insitu.engine.wrapped.WrappedModule": (
        "it belongs to another model than the one that is traced",
        "take the values from that model first, and send them as tensors",
    ),
    "transformers.tokenization_utils_base.PreTrainedTokenizerBase": (
        "it is not the tokenizer of the traced model, which is there already",
        "use model.tokenizer, send the token ids, or use it in `with insitu.local():`",
    ),
    "transformers.cache_utils.Cache": (
        "of the key-value caches, DynamicCache is the one that can be sent",
        "send its keys and values as tensors, or make it inside the block",
    ),
    "io.IOBase": (
        "an open file belongs to this process",
        "read it first and send what was read, or use it in `with insitu.local():`",
    ),
    "threading.Thread": (_ONE_SIDE, "start it outside of the block, or in insitu.local()"),
    "pandas.core.frame.DataFrame": (
        "tables of pandas are not data of this format",
        "send frame.to_dict('list') or frame.to_numpy()",
    ),
    "pandas.core.series.Series": (
        "tables of pandas are not data of this format",
        "send series.to_list() or series.to_numpy()",
    ),
    "PIL.Image.Image": ("an image is no array yet", "send numpy.asarray(image)"),
    "plotly.basedatatypes.BaseFigure": (
        "a figure is drawn where it is seen",
        "draw it after the block from values that were saved, or in `with insitu.local():`",
    ),
    "matplotlib.artist.Artist": (
        "a figure is drawn where it is seen",
        "draw it after the block from values that were saved, or in `with insitu.local():`",
    ),
    "datetime.date": ("dates are not data of this format", "send value.isoformat()"),
    "pathlib.PurePath": ("a path names a file of this machine", "send str(path) or what is in it"),
    "re.Pattern": ("it is compiled", "send pattern.pattern, and compile it inside the block"),
}
_BY_NAME: Mapping[str, tuple[str, str]] = {
    "generator": (
        "a generator stands in the middle of a function here",
        "send list(…) of it, or run it in `with insitu.local():`",
    ),
    "coroutine": ("it runs in this process's event loop", "await it first, and send what it gives"),
    "function": (
        "functions go along with a block, not with values",
        "send what it returns",
    ),
    "type": ("classes go along with a block, not with values", "send what it is made of"),
    "module": ("modules go along with a block, not with values", "send the values you need of it"),
    "lock": (_ONE_SIDE, "make it inside the block"),
    "RLock": (_ONE_SIDE, "make it inside the block"),
    "socket": (_ONE_SIDE, "use it in `with insitu.local():`"),
}
_OTHERWISE = (
    "it is no value that can be written down: a number, text, tensor, array, or a container or "
    "dataclass of them",
    "send the values you need of it, or use it in `with insitu.local():`",
)


def _advice(value: Any) -> tuple[str, str]:
    kind = type(value)
    if kind.__name__.lstrip("_") in _BY_NAME and kind.__module__ in (
        "builtins", "_thread", "socket", "threading",
    ):  # fmt: skip
        return _BY_NAME[kind.__name__.lstrip("_")]
    for base in kind.__mro__:
        for name in (f"{base.__module__}.{base.__qualname__}", _public(base)):
            if name in _ADVICE:
                return _ADVICE[name]
    if getattr(value, "dtype", None) is not None and kind.__module__.startswith("numpy"):
        return "its dtype holds objects, not numbers", "send value.tolist()"
    if isinstance(value, (dict, list, tuple, set, str, int, float)):
        plain = next(base.__name__ for base in kind.__mro__ if base.__module__ == "builtins")
        return "it is of a class of its own", f"send {plain}(…) of it"
    return _OTHERWISE


def _public(kind: type) -> str:
    aliases = {
        "torch.optim.optimizer.Optimizer": "torch.optim.Optimizer",
        "torch.nn.modules.module.Module": "torch.nn.Module",
        "torch.utils.data.dataloader.DataLoader": "torch.utils.data.DataLoader",
        "torch._C.Generator": "torch.Generator",
        "torch._tensor.Tensor": "torch.Tensor",
        "_io._IOBase": "io.IOBase",
        "pathlib._local.PurePath": "pathlib.PurePath",
        "pandas.DataFrame": "pandas.core.frame.DataFrame",
        "pandas.Series": "pandas.core.series.Series",
    }
    name = f"{kind.__module__}.{kind.__qualname__}"
    return aliases.get(name, name)
