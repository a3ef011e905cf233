"""The activation cache: what modules took and returned in one pass, by path.

with model.trace("Hello") as tracer:
    cache = tracer.cache()
cache["model.transformer.h.0"].output           # also "transformer.h.0"
cache.model.transformer.h[0].output
cache["transformer.h.*.mlp"]                    # a smaller cache
cache.stack("transformer.h.*")                  # [layer, batch, pos, d_model]
cache.save("hello.safetensors")                 # insitu.load_cache reads it

Values are those the model went on with, after edits and the block. They are detached, and not
copied: an in-place operation later in the pass may change one, which is noticed and told
(`clone=True` copies). When the pass is over they are yours, and what you change is changed.
A module called several times has several values: `entry.output` is then a list, in the order of the
calls; `entry[k]` is one call, `cache.step(k)` one step of a generation. Objects that are neither
tensors, containers nor plain values, such as the key-value cache of transformers, are not kept.
"""

import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from insitu.engine import paths
from insitu.engine.cache import table as cache_table
from insitu.engine.cache.entry import SITES, Entry, Place
from insitu.engine.cache.file import read_records, write
from insitu.engine.cache.forecast import Forecast
from insitu.engine.cache.globs import chosen, folded, is_pattern, matching, resolved
from insitu.engine.cache.options import to_device
from insitu.engine.cache.record import INPUTS, OUTPUT, STEP, Plan, Record
from insitu.engine.cache.values import Ref, leaves, mapped
from insitu.engine.opening import opened
from insitu.engine.save import save
from insitu.engine.wrapped import WrappedModule
from insitu.errors import InsituError, MissingActivation, StepError, UsageError

_SHOWN_MAX = 6


class ActivationCache(Mapping[str, Any]):
    """What modules took and returned in one pass. `tracer.cache()` and `insitu.load_cache` make it.

    A mapping from paths to entries, in the order of the model's tree, of the modules that have run.
    """

    def __init__(
        self,
        records: Mapping[str, Record],
        sides: frozenset[int],
        model: str,
        *,
        root: WrappedModule | None = None,
        forecast: Forecast | None = None,
    ) -> None:
        self._records = records
        self._sides = sides
        self._model = model
        self._root = None if root is None else weakref.ref(root)
        self.forecast = forecast
        """What a scan expected, where a budget was given and a scan was possible."""

    # Looking up ------------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Any:
        """The entry at a path or of a wrapped module; for a pattern a smaller cache.

        Raises:
            MissingActivation: there is none.
        """
        text = self._text(key)
        found = resolved(text, self._records)
        if found is not None and self._records[found].calls:
            return Entry(found, self._records[found], self._sides)
        if found is None and is_pattern(text):
            some = [path for path in matching(text, self._records) if self._records[path].calls]
            if some:
                return self._with({path: self._records[path] for path in some})
        raise self._missing(text)

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, (str, WrappedModule)):
            return False
        text = self._text(key)
        found = resolved(text, self._records)
        if found is not None:
            return bool(self._records[found].calls)
        some = matching(text, self._records) if is_pattern(text) else ()
        return any(self._records[path].calls for path in some)

    def __iter__(self) -> Iterator[str]:
        return (path for path, record in self._records.items() if record.calls)

    def __len__(self) -> int:
        return sum(bool(record.calls) for record in self._records.values())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        found = self._place(name)
        if found is None:
            raise self._missing(name)
        return found

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), "model"]

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)

    def view(self, other: Any = None) -> Any:
        """All tensors as a widget: numbers of each, heat maps, a search for NaN.

        cache.view()                # in a notebook; elsewhere print(cache)
        cache.view(other_cache)     # how far the two are apart
        """
        return opened("view", self, other=other)

    # All values together ---------------------------------------------------------------------

    @property
    def size_bytes(self) -> int:
        """The bytes of all values, in memory or on disk; one met at two modules counts once."""
        return cache_table.total_bytes(self._records)

    @property
    def steps(self) -> list[int]:
        """The steps from which there are values."""
        calls = (call for record in self._records.values() for call in record.calls)
        return sorted({max(call[STEP], 0) for call in calls})

    def step(self, number: int) -> "ActivationCache":
        """The values of one step of a generation.

            cache.step(2)["model.lm_head"].output

        Raises:
            StepError: there is none from that step.
        """
        if number not in self.steps:
            raise StepError(
                f"this cache has no values of step {number!r}.",
                f"it has some of the steps {', '.join(map(str, self.steps)) or '(none)'}.",
                "ask for one of those; the first is 0.",
            )
        return self._mapped(lambda record: [c for c in record if max(c[STEP], 0) == number])

    def stack(self, pattern: str, site: str = "output") -> Tensor:
        """One tensor of what several modules returned, along a new first axis, in their order.

            cache.stack("transformer.h.*")      # [layer, batch, pos, d_model]

        Of a value that is a tuple, its first tensor counts.

        Args:
            pattern: the modules, by a pattern of paths.
            site: `output` or `input`.

        Raises:
            MissingActivation: nothing in the cache has such a path.
            UsageError: the values differ in shape, or are several.
        """
        self._require_site(site)
        found = self[pattern]
        entries = found.items() if isinstance(found, ActivationCache) else [(pattern, found)]
        tensors = [_first_tensor(path, entry, site) for path, entry in entries]
        shapes = {tuple(t.shape) for t in tensors}
        if len(shapes) > 1:
            raise UsageError(
                f"{pattern!r} names values of different shapes, which do not stack.",
                f"they are {', '.join(map(str, sorted(shapes)[:_SHOWN_MAX]))}.",
                "give a pattern of modules that are alike, such as 'transformer.h.*.mlp'.",
            )
        return torch.stack([tensor.to(tensors[0].device) for tensor in tensors])

    def to_dict(self, site: str = "output") -> dict[str, Any]:
        """The values of one site by path: `{"model.lm_head": tensor, …}`.

        Args:
            site: `output`, `input` or `inputs`.
        """
        self._require_site(site)
        return {path: entry.values(site) for path, entry in self.items()}

    def to(
        self, device: torch.device | str | torch.dtype | None, dtype: torch.dtype | None = None
    ) -> "ActivationCache":
        """The same values on another device or of another dtype, in memory.

            cache.to("cpu", torch.float32)

        Integers stay as they are; this cache does, too.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        plan = Plan(detach=False, device=to_device(device), dtype=dtype)

        def leaf(part: Any) -> Any:
            tensor = part.read() if isinstance(part, Ref) else part
            return plan.keep(tensor, [], False) if isinstance(tensor, Tensor) else part

        return self._mapped(
            lambda calls: [
                (c[0], mapped(c[OUTPUT], leaf), mapped(c[INPUTS], leaf), []) for c in calls
            ]
        )

    def save(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Write the cache to one safetensors file, over what is there; gives its path.

            cache.save("hello.safetensors")
            cache = insitu.load_cache("hello.safetensors")

            cache = tracer.cache().save()       # in a block elsewhere: it is to come back

        Raises:
            CacheFileError: there are no numbers to write, as after a scan.
        """
        if path is None:
            return save(self)
        place = Path(path)
        write(place, {p: r for p, r in self._records.items() if r.calls}, self._model)
        return place

    def __repr__(self) -> str:
        return cache_table.text(self.title, cache_table.rows(self._records))

    @property
    def records(self) -> Mapping[str, Record]:
        """The calls of each module, as they are kept; for displays."""
        return self._records

    @property
    def title(self) -> str:
        """What is in the cache, in a line."""
        steps = len(self.steps)
        parts = [
            cache_table.counted(len(self), "module"),
            *([cache_table.counted(steps, "step")] if steps > 1 else []),
            cache_table.in_bytes(self.size_bytes),
        ]
        return f"ActivationCache of {self._model}: {', '.join(parts)}"

    # How it is done --------------------------------------------------------------------------

    def _with(self, records: Mapping[str, Record]) -> "ActivationCache":
        root = None if self._root is None else self._root()
        return ActivationCache(records, self._sides, self._model, root=root)

    def _mapped(self, of: Callable[[list[Any]], list[Any]]) -> "ActivationCache":
        """The same cache with other calls; modules in two places stay one."""
        once = {id(r): Record(of(r.current()), r.sealed) for r in self._records.values()}
        return self._with({path: once[id(record)] for path, record in self._records.items()})

    def _text(self, key: Any) -> str:
        if isinstance(key, WrappedModule):
            return "model" if key._parent is None else f"model.{key._path}"
        return str(key)

    def _place(self, text: str) -> Place | None:
        """A place in the tree, given with the root's name or without."""
        for path in (text, f"model.{text}"):
            if any(one == path or one.startswith(f"{path}.") for one in self):
                return Place(self, path)
        return None

    def _names_below(self, path: str) -> list[str]:
        below = (one.removeprefix(f"{path}.") for one in self if one.startswith(f"{path}."))
        return list(dict.fromkeys(name.partition(".")[0] for name in below))

    def _require_site(self, site: str) -> None:
        if site not in SITES:
            raise UsageError(
                f"site={site!r} is no site.",
                "a cache keeps what modules return and are called with.",
                f"write one of {', '.join(map(repr, SITES))}.",
            )

    def _missing(self, text: str) -> MissingActivation:
        return MissingActivation(
            f"{text} is not in this cache.", self._why_missing(text), self._instead_of(text)
        )

    def _why_missing(self, text: str) -> str:
        shown = ", ".join(list(self)[:_SHOWN_MAX]) or "nothing"
        holds = f"it holds {shown}{', …' if len(self) > _SHOWN_MAX else ''}"
        if resolved(text, self._records) is not None:
            return f"the model has not called it in this pass; {holds}."
        root = None if self._root is None else self._root()
        if root is not None:
            try:
                found = chosen(root, [text])
            except InsituError:
                return f"{self._model} has no such module; {holds}."
            if resolved(text, found) is None and not is_pattern(text):
                return f"it is never called itself, only what is in it; {holds}."
            return f"it was not among the modules to cache; {holds}."
        return f"{holds}."

    def _instead_of(self, text: str) -> str:
        inside = next((path for path in (f"{text}.*", f"model.{text}.*") if path in self), None)
        if inside is not None:
            return f"did you mean cache[{inside!r}]?"
        known = list(self)
        close = [path for path in known if path.endswith(f".{text}")]
        for name in (text, f"model.{text}"):
            close = close or paths.nearest(name, [*known, *dict.fromkeys(map(folded, known))], 0.75)
        return f"did you mean {close[0]!r}?" if close else "print(cache) shows all that is there."

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_root": None}


def load_cache(
    path: str | os.PathLike[str], device: torch.device | str | None = None
) -> ActivationCache:
    """A cache from a file of `cache.save`, or a folder of `tracer.cache(spill=folder)`.

        cache = insitu.load_cache("hello.safetensors")
        cache["transformer.h.0"].output         # read now, mapped into memory

    Args:
        path: the file or folder. Nothing in it is run as code.
        device: where to put values as they are read; the CPU when None.

    Raises:
        CacheFileError: there is no cache, or it cannot be read.
    """
    records, model = read_records(Path(path), to_device(device))
    calls = [call for record in records.values() for call in record.calls]
    sides = {side for side in (OUTPUT, INPUTS) if any(call[side] is not None for call in calls)}
    return ActivationCache(records, frozenset(sides), model)


def _first_tensor(path: str, entry: Entry, site: str) -> Tensor:
    if len(entry) > 1:
        raise UsageError(
            f"{path} has {len(entry)} values, which do not stack.",
            f"it was called in the steps {', '.join(map(str, entry.steps))}.",
            "stack one step: cache.step(0).stack(pattern).",
        )
    found: Iterable[Any] = leaves(entry.values(site))
    tensor = next((leaf for leaf in found if isinstance(leaf, Tensor)), None)
    if tensor is None:
        raise MissingActivation(
            f"{path}.{site} holds no tensor.",
            f"it is {entry!r}.",
            "give a pattern of modules that return tensors.",
        )
    return tensor
