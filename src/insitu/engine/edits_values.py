"""The values an edit was written with, as a file can hold them: named, never pickled.

    packing = Packing(model)
    packing.pack("direction", direction)        # {"at": 0}
    packing.values, packing.tensors             # [{"tensor": "direction", …}], {"direction": …}
    Unpacking(model, packing.values, packing.tensors.__getitem__).value({"at": 0})

A tensor is kept, a module of the model goes by its path, an imported module, function or class by
its name. A value that has two names is one value again when it is read. Reading imports modules by
name, so a file of edits is to be trusted like a program.
"""

import base64
import importlib
import math
import sys
from collections.abc import Callable, Iterable
from types import EllipsisType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from insitu.engine import paths
from insitu.engine.cache.file import storable
from insitu.engine.source.operations import Operation, Source
from insitu.engine.wrapped import WrappedModule
from insitu.errors import EditsFileError, UnknownModuleError, UsageError

Packed = Any
"""What JSON has, or `{"at": index}` of the table of values."""

_WHY = (
    "a file of edits holds tensors, numbers, text, lists and dicts of them, and the names of what "
    "can be imported; nothing is pickled."
)
_PARTS: dict[type, str] = {
    list: "list", tuple: "tuple", set: "set", frozenset: "frozenset", torch.Size: "size",
}  # fmt: skip
_HOMES = ("torch", "torch.nn.functional", "builtins")
"""Where functions written in C are looked for, which do not know their module."""


class Packing:
    """The values of the edits of one model, each of them once."""

    def __init__(self, root: Any) -> None:
        self.values: list[Any] = []
        self.tensors: dict[str, Tensor] = {}
        self.edit = "the edit"
        """Whose values these are, for errors."""
        self._root = root
        self._places: dict[int, int] = {}
        self._kept: list[Any] = []  # or an id could come back as another value's
        self._open: set[int] = set()
        module: nn.Module = root._module
        self._modules = {id(it): path for path, it in module.named_modules()}
        self._weights = {id(it): path for path, it in module.named_parameters()}
        self._weights.update((id(it), path) for path, it in module.named_buffers())
        self._devices = {weight.device for weight in module.parameters()}

    def pack(self, said: str, value: Any) -> Packed:
        """A value as JSON; `said` is how the user would write it.

        Raises:
            UsageError: no file can hold it.
        """
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float and math.isfinite(value):
            return value
        if id(value) in self._open:
            raise self._refused(said, "a container that holds itself", "take it apart.")
        if id(value) not in self._places:
            self._places[id(value)] = place = len(self.values)
            self.values.append(None)
            self._kept.append(value)
            self._open.add(id(value))
            self.values[place] = self._form(said, value)
            self._open.discard(id(value))
        return {"at": self._places[id(value)]}

    def _form(self, said: str, value: Any) -> dict[str, Any]:
        if isinstance(value, Tensor):
            return self._tensor(said, value)
        if (kind := _PARTS.get(type(value))) is not None:
            parts = sorted(value, key=repr) if kind in ("set", "frozenset") else value
            return {kind: [self.pack(f"{said}[{i}]", part) for i, part in enumerate(parts)]}
        if type(value) is dict:
            items = value.items()
            pairs = [
                [self.pack(f"a key of {said}", k), self.pack(f"{said}[{k!r}]", v)] for k, v in items
            ]
            return {"dict": pairs}
        if isinstance(value, nn.Module):
            if id(value) not in self._modules:
                kind = f"a {type(value).__name__} that is no part of the model"
                raise self._refused(said, kind, f"give it the tensors: weight = {said}.weight")
            return {"torch_module": self._modules[id(value)]}
        if isinstance(value, (WrappedModule, Source, Operation)):
            return self._place(said, value)
        return _plain(value) or self._imported(said, value)

    def _tensor(self, said: str, value: Tensor) -> dict[str, Any]:
        if id(value) in self._weights:
            return {"weight": self._weights[id(value)]}
        if value.is_meta or hasattr(value, "fake_mode"):
            kind = "a tensor that has a shape and no numbers"
            raise self._refused(said, kind, "make it of numbers, and write the edit again.")
        plain = storable(value)
        if plain is None or type(value) not in (Tensor, nn.Parameter):
            raise self._refused(
                said, f"a {type(value).__name__} of another layout", f"give it {said}.to_dense()."
            )
        name, number = said, 1
        while name in self.tensors:
            name, number = f"{said}~{number}", number + 1
        self.tensors[name] = plain
        return {
            "tensor": name,
            "complex": value.dtype is torch.complex128,
            "parameter": type(value) is nn.Parameter,
            "requires_grad": value.requires_grad,
            "device": str(value.device) if value.device in self._devices else None,
        }

    def _place(self, said: str, value: Any) -> dict[str, Any]:
        if value._whole is not self._root._whole:
            raise self._refused(said, "a part of another model", "use this model's own in it.")
        if not isinstance(value, WrappedModule):
            raise self._refused(said, "an operation", f"write {value._path} in the block itself.")
        return {"module": "" if value._parent is None else value._path}

    def _imported(self, said: str, value: Any) -> dict[str, Any]:
        if isinstance(value, ModuleType):
            name = value.__name__
            if name == "__main__" or sys.modules.get(name) is not value:
                raise self._refused(said, f"the module {name}", "import it under its own name.")
            return {"import": name}
        if (found := importable(value)) is not None:
            return {"from": list(found)}
        if isinstance(value, type) or hasattr(value, "__code__"):
            kind = "class" if isinstance(value, type) else "function"
            raise self._refused(
                said,
                f"a {kind} of {value.__module__}, which no other program can import",
                f"write the {kind} into the block, or put it into a file and import it from there.",
            )
        advice = f"above the block, give what it needs a name: value = {said}.…"
        if hasattr(value, "__array__"):
            advice = f"make it a tensor above the block: {said} = torch.as_tensor({said})."
        raise self._refused(said, f"a {type(value).__name__}", advice)

    def _refused(self, said: str, kind: str, advice: str) -> UsageError:
        return UsageError(f"{self.edit} cannot be saved: {said} is {kind}.", _WHY, advice)


def importable(value: Any) -> tuple[str, str] | None:
    """The module and the name by which another program gets a function or a class."""
    name = getattr(value, "__name__", None)
    qualified = getattr(value, "__qualname__", name)
    home = getattr(value, "__module__", None)
    if not isinstance(name, str) or not callable(value):
        return None
    if not isinstance(home, str):
        candidates: Iterable[tuple[str, str]] = ((where, name) for where in _HOMES)
    else:
        candidates = ((home.partition(".")[0], name), (home, str(qualified)))
    for where, path in candidates:
        module = None if where == "__main__" else sys.modules.get(where)
        if module is not None and _reached(module, path) is value:
            return where, path
    return None


def _reached(module: ModuleType, path: str) -> Any:
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def _plain(value: Any) -> dict[str, Any] | None:
    """Values that JSON has no form for."""
    if type(value) is float:
        return {"float": repr(value)}
    if type(value) is complex:
        return {"complex": [repr(value.real), repr(value.imag)]}
    if type(value) is bytes:
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if type(value) in (slice, range):
        bounds = [value.start, value.stop, value.step]
        if all(type(bound) in (int, type(None)) for bound in bounds):
            return {type(value).__name__: bounds}
    return {"ellipsis": True} if type(value) is EllipsisType else None


class Missing(Exception):
    """A module that a file names and the model does not have."""

    def __init__(self, place: str, error: UnknownModuleError) -> None:
        super().__init__(place)
        self.place = place
        self.error = error


class Unpacking:
    """The values of a file, for one model."""

    def __init__(self, root: Any, values: list[Any], read: Callable[[str], Tensor]) -> None:
        self.edit = "the edit"
        self._root = root
        self._values = values
        self._read = read
        self._made: dict[int, Any] = {}
        self._forms: dict[str, Callable[[Any], Any]] = {
            "at": self._at,
            "list": self._parts,
            "tuple": lambda parts: tuple(self._parts(parts)),
            "set": lambda parts: set(self._parts(parts)),
            "frozenset": lambda parts: frozenset(self._parts(parts)),
            "size": lambda parts: torch.Size(self._parts(parts)),
            "dict": lambda pairs: {self.value(key): self.value(part) for key, part in pairs},
            "module": self._node,
            "torch_module": lambda path: self._node(path)._module,
            "weight": self._weight,
            "import": self._module,
            "from": lambda names: self._member(*names),
            "float": float,
            "complex": lambda parts: complex(*map(float, parts)),
            "bytes": base64.b64decode,
            "dtype": self._dtype,
            "device": torch.device,
            "slice": lambda bounds: slice(*bounds),
            "range": lambda bounds: range(*bounds),
            "ellipsis": lambda _: ...,
        }

    def value(self, packed: Packed) -> Any:
        """A value again.

        Raises:
            EditsFileError: it needs what cannot be imported, or a weight the model does not have.
            Missing: it is a module that the model does not have.
        """
        if not isinstance(packed, dict):
            return packed
        if "tensor" in packed:
            return self._tensor(packed)
        ((form, content),) = packed.items()
        return self._forms[form](content)

    def _at(self, index: int) -> Any:
        if index not in self._made:
            if not 0 <= index < len(self._values):
                raise ValueError(f"there is no value {index}")
            self._made[index] = self.value(self._values[index])
        return self._made[index]

    def _parts(self, parts: list[Packed]) -> list[Any]:
        return [self.value(part) for part in parts]

    def _tensor(self, packed: dict[str, Any]) -> Tensor:
        value = self._read(packed["tensor"])
        if packed["complex"]:
            value = torch.view_as_complex(value)
        value = value.to(self._device(packed["device"]))
        if packed["parameter"]:
            return nn.Parameter(value, requires_grad=packed["requires_grad"])
        return value.requires_grad_(packed["requires_grad"])

    def _device(self, written: str | None) -> torch.device:
        """Where a tensor belongs that stood beside the model, or elsewhere: on the CPU."""
        devices = dict.fromkeys(str(weight.device) for weight in self._root._module.parameters())
        if written is None or not devices or "meta" in devices:
            return torch.device("cpu")
        return torch.device(written if written in devices else next(iter(devices)))

    def _node(self, path: str) -> Any:
        try:
            return self._root._at_path(path) if path else self._root
        except UnknownModuleError as error:
            raise Missing(path, error) from None

    def _weight(self, path: str) -> Tensor:
        module: nn.Module = self._root._module
        weights = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        if path not in weights:
            close = paths.nearest(path, weights)
            raise EditsFileError(
                f"{self.edit} needs the weight {path}, which this model does not have.",
                f"the model is a {type(module).__name__}.",
                f"load it into a model like the one it was saved from{_nearest(close)}.",
            )
        return weights[path]

    def _module(self, name: str) -> ModuleType:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise EditsFileError(
                f"{self.edit} needs {name}, which cannot be imported.",
                f"{error}.",
                f"pip install {name.partition('.')[0]}, or add the folder it is in to sys.path.",
            ) from error

    def _member(self, home: str, name: str) -> Any:
        module = self._module(home)
        found = _reached(module, name)
        if found is None:
            raise EditsFileError(
                f"{self.edit} needs {name} of {home}, which is not there.",
                f"{home} is imported from {getattr(module, '__file__', None) or 'Python itself'}.",
                f"install the version of {home.partition('.')[0]} it was saved with.",
            )
        return found

    def _dtype(self, name: str) -> torch.dtype:
        found = getattr(torch, name)
        if not isinstance(found, torch.dtype):
            raise TypeError(f"{name} is no dtype")
        return found


def _nearest(close: list[str]) -> str:
    return f"; the nearest here is {close[0]}" if close else ""
