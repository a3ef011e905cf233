"""A cache in files: tensors as safetensors, their structure as JSON, nothing that runs code.

    write("run.safetensors", records, model="GPT2LMHeadModel")
    records, model = read_records("run.safetensors")        # a file, or a folder of shards

The JSON tells dtype and shape of every tensor, so a table of a cache opens no tensor; a tensor is
mapped into memory when it is looked at. Names in a file are readable (`transformer.h.0.output`),
so that it can be used without Insitu. Objects that are no tensors, containers or plain values have
been left out when they were recorded.
"""

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from insitu.engine.cache.record import INPUTS, OUTPUT, STEP, Call, Record
from insitu.engine.cache.values import CHANGED, Changed, Fields, NotKept, Ref, identity, kind
from insitu.errors import CacheFileError

FORMAT = 1
INDEX = "cache.json"
_KEY = "insitu_cache"
_SHARD = "shard-{:05d}.safetensors"
_DTYPES = {
    str(value).removeprefix("torch."): value
    for value in vars(torch).values()
    if isinstance(value, torch.dtype)
}


def shard_name(number: int) -> str:
    """The name of a shard in a spill folder."""
    return _SHARD.format(number)


class Shards:
    """The files a cache reads its tensors from; one stays mapped while the cache lives."""

    def __init__(self, place: Path, device: torch.device | None = None) -> None:
        self.place = place
        self.device = device
        self._opened: dict[int, Any] = {}

    def path(self, number: int) -> Path:
        """The file of a shard; a cache in one file has one."""
        return self.place / shard_name(number) if self.place.is_dir() else self.place

    def read(self, ref: Ref) -> Tensor:
        """The tensor a reference stands for."""
        value = ref.held if ref.held is not None else self._from_file(ref)
        if ref.dtype is torch.complex128:
            value = torch.view_as_complex(value)
        return value if self.device is None else value.to(self.device)

    def _from_file(self, ref: Ref) -> Tensor:
        opened = self._opened.get(ref.shard)
        if opened is None:
            opened = self._opened[ref.shard] = _open(self.path(ref.shard))
        try:
            value: Tensor = opened.get_tensor(ref.name)
            return value
        except Exception as error:  # safetensors' own class derives from Exception alone
            raise _broken(self.path(ref.shard), f"{ref.name}: {error}") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return Shards, (self.place, self.device)


# Writing -------------------------------------------------------------------------------------


def write(path: Path, records: Mapping[str, Record], model: str) -> None:
    """Write a cache into one file, over what is there; a failure leaves that as it was."""
    tensors: dict[str, Tensor] = {}
    names: dict[Any, str] = {}

    def place(name: str, value: Tensor | Ref) -> dict[str, Any] | None:
        found = names.get(identity(value))
        if found is None:
            tensor = value.read() if isinstance(value, Ref) else value
            if (plain := storable(tensor)) is None:
                return None
            found = names[identity(value)] = _unused(name, tensors)
            tensors[found] = plain
        return {"tensor": found, **_facts(value)}

    document = _document(records, model, place)
    write_tensors(path, tensors, {_KEY: json.dumps(document)})


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file; it appears under its name when it is whole."""
    from safetensors.torch import save_file

    apart: set[int] = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        if storage._cdata in apart or storage.nbytes() != tensor.nbytes:
            tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
        apart.add(storage._cdata)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        save_file(tensors, unfinished, metadata)
        os.replace(unfinished, path)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


def storable(tensor: Tensor) -> Tensor | None:
    """A tensor as safetensors takes it, on the CPU; None for a kind that no file can hold.

    Raises:
        CacheFileError: it has no numbers, being of a scan or a model without weights.
    """
    if tensor.is_meta or hasattr(tensor, "fake_mode"):
        raise CacheFileError(
            "this cache cannot be written: its tensors have shapes and no numbers.",
            f"it was recorded on {'fake tensors' if hasattr(tensor, 'fake_mode') else 'meta'}.",
            "record it in a trace of a model that has its weights.",
        )
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
        return None
    tensor = tensor.detach().to("cpu").resolve_conj().resolve_neg()
    if tensor.dtype is torch.complex128:
        tensor = torch.view_as_real(tensor)
    return tensor.contiguous()


def write_index(folder: Path, records: Mapping[str, Record], model: str) -> None:
    """Finish a folder of shards: say what is in them."""

    def place(name: str, value: Ref) -> dict[str, Any]:
        return {"tensor": value.name, "shard": value.shard, **_facts(value)}

    document = _document(records, model, place)
    unfinished = folder / f"{INDEX}.part"
    unfinished.write_text(json.dumps(document))
    os.replace(unfinished, folder / INDEX)


Place = Callable[[str, Any], dict[str, Any] | None]


def _document(records: Mapping[str, Record], model: str, place: Place) -> dict[str, Any]:
    paths: dict[int, list[str]] = {}
    for path, record in records.items():
        paths.setdefault(id(record), []).append(path)
    written = []
    for places in paths.values():
        bare = places[0].removeprefix("model.")
        calls = records[places[0]].current()
        several = len(calls) > 1
        written.append(
            {
                "paths": places,
                "calls": [
                    [
                        max(call[STEP], 0),
                        _encode(call[OUTPUT], f"{bare}{f'.call{n}' * several}.output", place),
                        _encode(call[INPUTS], f"{bare}{f'.call{n}' * several}.inputs", place),
                    ]
                    for n, call in enumerate(calls)
                ],
            }
        )
    return {"format": FORMAT, "model": model, "order": list(records), "records": written}


def _encode(value: Any, name: str, place: Place) -> Any:
    """A value as JSON; its tensors are put in their place under a readable name."""
    if isinstance(value, (Tensor, Ref)):
        return place(name, value) or {"not_kept": kind(value)}
    if value is None or isinstance(value, (bool, str)) or type(value) in (int, float):
        return value
    if isinstance(value, Mapping):
        parts = [[_plain_key(k), _encode(v, f"{name}.{k}", place)] for k, v in value.items()]
        return {"dict": parts} if type(value) is dict else _fields(value, parts)
    if isinstance(value, (tuple, list)):
        names = getattr(value, "_fields", range(len(value)))
        parts = [_encode(v, f"{name}.{n}", place) for n, v in zip(names, value, strict=True)]
        if hasattr(value, "_fields"):
            return _fields(value, list(zip(names, parts, strict=True)))
        return {"list" if isinstance(value, list) else "tuple": parts}
    return _encode_rare(value, name, place)


def _encode_rare(value: Any, name: str, place: Place) -> Any:
    if isinstance(value, Changed):
        return {"changed": True}
    if isinstance(value, NotKept):
        return {"not_kept": value.kind}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if hasattr(value, "__dataclass_fields__"):
        fields = {k: getattr(value, k) for k in value.__dataclass_fields__ if hasattr(value, k)}
        return _fields(value, _encode(fields, name, place)["dict"])
    return {"not_kept": type(value).__name__}


def _fields(value: Any, parts: list[Any]) -> dict[str, Any]:
    kind = value._kind if isinstance(value, Fields) else type(value).__name__
    return {"fields": parts, "kind": kind}


def _plain_key(key: Any) -> Any:
    return key if isinstance(key, (str, int, float, bool, type(None))) else str(key)


def _facts(value: Tensor | Ref) -> dict[str, Any]:
    return {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}


def _unused(name: str, taken: Mapping[str, Any]) -> str:
    found, number = name, 1
    while found in taken:
        found, number = f"{name}~{number}", number + 1
    return found


# Reading -------------------------------------------------------------------------------------


def read_records(path: Path, device: torch.device | None = None) -> tuple[dict[str, Record], str]:
    """The records of a cache on disk, their tensors still there, and the model's class.

    Raises:
        CacheFileError: there is no cache, or it cannot be read.
    """
    document = _read_document(path)
    shards = Shards(path, device)
    try:
        if document["format"] != FORMAT:
            raise CacheFileError(
                f"{path} was written in format {document['format']}, and is not read here.",
                f"this version of Insitu knows format {FORMAT}.",
                "pip install --upgrade insitu",
            )
        found: dict[str, Record] = {}
        for written in document["records"]:
            calls: list[Call] = [
                (int(step), _decode(output, shards), _decode(inputs, shards), [])
                for step, output, inputs in written["calls"]
            ]
            record = Record(calls, sealed=True)
            found.update(dict.fromkeys(map(str, written["paths"]), record))
        return {key: found[key] for key in document["order"]}, str(document["model"])
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise _broken(path, f"its structure cannot be read ({error!r})") from error


def _read_document(path: Path) -> Any:
    if path.is_dir():
        if not (path / INDEX).is_file():
            raise CacheFileError(
                f"there is no finished cache in {path}.",
                f"a folder that a cache was spilled to holds {INDEX}, written when its pass ends.",
                "give the folder of tracer.cache(spill=folder), or a file of cache.save(file).",
            )
        text = (path / INDEX).read_text()
    else:
        text = (_open(path).metadata() or {}).get(_KEY, "")
        if not text:
            raise _broken(path, "it is a safetensors file that cache.save() did not write")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"its structure is no JSON ({error})") from error


def _open(path: Path) -> Any:
    if not path.is_file():
        raise CacheFileError(
            f"there is no file {path}.",
            "a cache is read from the file or folder it was written to.",
            "check the path; cache.save(path) writes one.",
        )
    from safetensors import safe_open

    try:
        return safe_open(path, framework="pt")
    except Exception as error:  # safetensors' own class derives from Exception alone
        raise _broken(path, str(error)) from error


def _decode(value: Any, shards: Shards) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        shape = tuple(map(int, value["shape"]))
        return Ref(shards, int(value.get("shard", 0)), value["tensor"], _dtype(value), shape)
    (form, content), *_ = value.items()
    if form in ("tuple", "list"):
        parts = [_decode(part, shards) for part in content]
        return tuple(parts) if form == "tuple" else parts
    if form in ("dict", "fields"):
        named = [(name, _decode(part, shards)) for name, part in content]
        if form == "dict":
            return dict(named)
        fields = Fields(named)
        fields.__dict__["_kind"] = str(value["kind"])
        return fields
    rare: dict[str, Callable[[], Any]] = {
        "changed": lambda: CHANGED,
        "not_kept": lambda: NotKept(str(content)),
        "complex": lambda: complex(*content),
        "dtype": lambda: _dtype(value),
        "device": lambda: torch.device(content),
    }
    return rare[form]()


def _dtype(value: dict[str, Any]) -> torch.dtype:
    return _DTYPES[value["dtype"]]


def _broken(path: Path, why: str) -> CacheFileError:
    return CacheFileError(
        f"{path} could not be read as a cache.",
        f"{why}.",
        "give the folder of tracer.cache(spill=folder), or a file of cache.save(file).",
    )
