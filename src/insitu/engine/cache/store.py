"""Where a cache's values go: memory up to a budget, then an error or a folder on disk.

    cache = tracer.cache(budget=2**30)                     # CacheBudgetError rather than 1 GiB more
    cache = tracer.cache(spill="folder/")                  # to disk as they come
    cache = tracer.cache(budget=2**30, spill="folder/")    # to disk once memory holds 1 GiB

A cache is in memory or on disk, never half: when it outgrows its budget, what it holds moves to the
folder too. Shards are written while the model runs, an index when the pass ends; a pass that fails
takes its files with it.
"""

import contextlib
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from insitu.engine.cache.file import (
    INDEX,
    Shards,
    shard_name,
    storable,
    write_index,
    write_tensors,
)
from insitu.engine.cache.forecast import Forecast
from insitu.engine.cache.record import INPUTS, OUTPUT, STEP, Call, Record
from insitu.engine.cache.table import in_bytes
from insitu.engine.cache.values import NotKept, Ref, identity, kind, mapped, size_bytes
from insitu.errors import CacheBudgetError, CacheFileError

SHARD_BYTES = 64 * 2**20
"""A shard is written when this much has come together: few files, and little memory meanwhile."""


class Budget:
    """Counts the bytes of a cache as they come, and keeps them under its budget."""

    def __init__(self, limit: int | None, spill: "Spill | None", why: str = "") -> None:
        self.limit = limit
        self.spill = spill
        self.spilling = spill is not None and limit is None
        self._why = why
        self._held_bytes = 0
        self._seen: set[Any] = set()

    def expect(self, forecast: Forecast) -> None:
        """Take a forecast in: refuse what will not fit, or write to disk from the beginning.

        Raises:
            CacheBudgetError: it exceeds the budget, and there is no folder to spill to.
        """
        if self.limit is None or forecast.size_bytes <= self.limit:
            return
        if self.spill is None:
            raise _over(
                f"the cache would take {in_bytes(forecast.size_bytes)}, "
                f"over its budget of {in_bytes(self.limit)}.",
                f"a scan of the same call counted {len(forecast.modules)} modules; the largest "
                f"are {forecast.largest}.",
            )
        self.spilling = True

    def place(self, path: str, call: Call, records: Mapping[str, Record]) -> Call:
        """Take a call in; gives it with its tensors, or with what stands for them on disk."""
        if not self.spilling:
            self._held_bytes += size_bytes((call[OUTPUT], call[INPUTS]), self._seen)
            if self.limit is None or self._held_bytes <= self.limit:
                return call
            if self.spill is None:
                raise _over(
                    f"the cache passed its budget of {in_bytes(self.limit)} "
                    f"at {path.removeprefix('model.')}.",
                    f"{self._why or 'the model called more than the forecast told'}, so bytes were "
                    f"counted while it ran: {in_bytes(self._held_bytes)} here.",
                )
            self._move(records)
        assert self.spill is not None
        return self.spill.take(path, call)

    def finish(self, failed: bool, records: Mapping[str, Record]) -> None:
        """The pass is over: make the folder whole, or empty."""
        self._seen.clear()
        if self.spill is None or not self.spilling:
            return
        if failed:
            self.spill.remove()
            for record in records.values():
                record.calls.clear()
        else:
            self.spill.finish(records)

    def _move(self, records: Mapping[str, Record]) -> None:
        """Write what is in memory to disk."""
        assert self.spill is not None
        self.spilling = True
        moved: dict[Any, Any] = {}
        for path, record in records.items():
            record.calls[:] = [self.spill.take(path, call, moved) for call in record.current()]
        self._seen.clear()


class Spill:
    """A folder that a cache is written to while it grows."""

    def __init__(
        self, folder: Path, shard_bytes: int, model: str, device: torch.device | None = None
    ) -> None:
        _refuse_taken(folder)
        self.folder = folder
        self._model = model
        self._shard_bytes = shard_bytes
        self._shards = Shards(folder, device)
        self._number = 0
        self._waiting: dict[str, Ref] = {}
        self._waiting_bytes = 0
        self._numbers: dict[str, int] = {}
        self._written: list[Path] = []
        self._undo = weakref.finalize(self, _remove, self._written)

    def take(self, path: str, call: Call, moved: dict[Any, Any] | None = None) -> Call:
        """A call with references in place of its tensors; those of `moved` are there already."""
        bare = path.removeprefix("model.")

        def leaf(part: Any) -> Any:
            if not isinstance(part, Tensor):
                return part
            if moved is None:
                return self._take_tensor(bare, part)
            key = identity(part)
            if key not in moved:
                moved[key] = self._take_tensor(bare, part), part  # kept, so that no other is alike
            return moved[key][0]

        return call[STEP], mapped(call[OUTPUT], leaf), mapped(call[INPUTS], leaf), []

    def _take_tensor(self, bare: str, tensor: Tensor) -> Ref | NotKept:
        value = storable(tensor)
        if value is None:
            return NotKept(kind(tensor))
        if value.untyped_storage()._cdata == tensor.untyped_storage()._cdata:
            value = value.clone()
        number = self._numbers[bare] = self._numbers.get(bare, -1) + 1
        name = f"{bare}~{number}" if number else bare
        ref = Ref(self._shards, self._number, name, tensor.dtype, tuple(tensor.shape))
        ref.held = value
        self._waiting[name] = ref
        self._waiting_bytes += value.nbytes
        if self._waiting_bytes >= self._shard_bytes:
            self._flush()
        return ref

    def _flush(self) -> None:
        if not self._waiting:
            return
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True)
            self._written.append(self.folder)
        path = self.folder / shard_name(self._number)
        self._written.append(path)
        tensors = {name: ref.held for name, ref in self._waiting.items() if ref.held is not None}
        write_tensors(path, tensors, {})
        for ref in self._waiting.values():
            ref.held = None
        self._waiting.clear()
        self._waiting_bytes = 0
        self._number += 1

    def finish(self, records: Mapping[str, Record]) -> None:
        """Write what is left, and the index."""
        try:
            self._flush()
            self.folder.mkdir(parents=True, exist_ok=True)
            write_index(self.folder, records, self._model)
        except BaseException:
            self.remove()
            raise
        self._undo.detach()

    def remove(self) -> None:
        """Take away every file that was written."""
        self._waiting.clear()
        self._undo()


def _remove(written: list[Path]) -> None:
    for path in reversed(written):
        with contextlib.suppress(OSError):  # gone already, or a folder with other files in it
            path.rmdir() if path.is_dir() else os.unlink(path)


def _refuse_taken(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise CacheFileError(
            f"a cache cannot be spilled to {folder}: it is a file.",
            "a spilled cache is a folder of shards.",
            "give a folder that is empty or does not exist yet.",
        )
    if (folder / INDEX).exists():
        raise CacheFileError(
            f"{folder} already holds a cache.",
            f"it has a {INDEX}, and writing another cache there would mix the two.",
            f"give another folder; insitu.load_cache({str(folder)!r}) reads the one that is there.",
        )
    if (folder / shard_name(0)).exists():
        raise CacheFileError(
            f"{folder} holds a part of a cache.",
            f"it has shards and no {INDEX}: a pass is writing there now, or one was killed.",
            "give another folder, or delete that one if nothing is writing to it.",
        )


def _over(what: str, why: str) -> CacheBudgetError:
    return CacheBudgetError(
        what,
        why,
        "cache fewer modules (modules=[…]), fewer steps (steps=[0]), dtype=torch.bfloat16, or "
        'write it to disk: spill="folder/".',
    )
