"""Keeping the outputs of every module, and of the twelve blocks.

    with model.trace(ids) as tracer:
        cache = tracer.cache()

Raw hooks do the same: each module has one, which keeps what it returned, detached. TransformerLens
caches the hook points of its own forward, which are more, under all their names; it is compared
with raw hooks on each of those, and with that forward.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from benchmarks import libraries
from benchmarks.comparison import OVER, TIMES, Row, Task, Tasks
from benchmarks.libraries import HOOKS, LENS, both
from benchmarks.subjects import Subject, gpt2
from benchmarks.timing import Way

TITLE = "Caching"
CACHE_MAX = 1.2


def rows(quick: bool) -> Iterator[Row]:
    """On the narrow shape and at full size."""
    yield from rows_of(gpt2())
    if not quick:
        yield from rows_of(gpt2("GPT-2, full size, 64 tokens", width=768, ids=(1, 64)))


def rows_of(subject: Subject) -> Iterator[Row]:
    """All modules, then the blocks alone."""
    modules, bare = everything(subject), subject.bare()
    every, some = by_hooks(subject, modules), by_hooks(subject, blocks(subject))
    tasks = cached(subject, True, every, every)
    tasks[LENS] = lambda: lensed(subject, over_hooks=True)
    what = f"all {len(modules)} modules, of raw hooks doing the same"
    yield Row(what, TIMES, tasks, subject.name, bound=CACHE_MAX)
    tasks = {HOOKS: lambda: Task(every, bare, bare), **cached(subject, True, bare, every)}
    tasks[LENS] = lambda: lensed(subject, over_hooks=False)
    yield Row(f"all {len(modules)} modules", OVER, tasks, subject.name, from_bare=True)
    tasks = {HOOKS: lambda: Task(some, bare, bare), **cached(subject, False, bare, some)}
    yield Row("12 blocks", OVER, tasks, subject.name, from_bare=True)


def cached(subject: Subject, whole: bool, base: Way, same_as: Way) -> Tasks:
    """By Insitu and nnsight."""
    return both(lambda who: Task(by_cache(who, subject, whole), base, same_as))


def everything(subject: Subject) -> dict[str, nn.Module]:
    """Every module by its path, lists and others that do not run too."""
    return dict(subject.module.named_modules())


def blocks(subject: Subject) -> dict[str, nn.Module]:
    """The layers by their paths."""
    return {f"{subject.prefix}.{k}": layer for k, layer in enumerate(subject.layers)}


def by_hooks(subject: Subject, modules: dict[str, nn.Module]) -> Way:
    """Raw hooks that keep what modules returned."""

    def run() -> Any:
        seen: dict[str, Any] = {}

        def make(path: str) -> Callable[..., None]:
            def hook(_module: Any, _args: Any, output: Any) -> None:
                seen[path] = detached(output)

            return hook

        handles = [module.register_forward_hook(make(path)) for path, module in modules.items()]
        try:
            subject.forward()
        finally:
            for handle in handles:
                handle.remove()
        return Kept(seen)

    return Way(run, subject.module)


def detached(value: Any) -> Any:
    """The same value without its history."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, tuple):
        return tuple(detached(part) for part in value)
    if isinstance(value, dict):
        return {key: detached(part) for key, part in value.items()}
    return value


def by_cache(who: str, subject: Subject, whole: bool) -> Way:
    """`tracer.cache()`, of everything or of the layers."""
    model = libraries.plain(who, subject)
    chosen = None if whole else subject.wrapped_layers(model)
    modules = everything(subject) if whole else blocks(subject)
    ran = by_hooks(subject, modules).run().keys
    kwargs = subject.kwargs or {}

    def run() -> Any:
        with model.trace(**kwargs) as tracer:
            cache = tracer.cache(modules=chosen)
        return Kept(cache, ran)

    return Way(run, model._module)


class Kept(Sequence[Any]):
    """What was kept, looked up when it is compared and not while it is timed."""

    def __init__(self, kept: Any, keys: list[str] | None = None) -> None:
        self._kept = kept
        self._keys = keys

    @property
    def keys(self) -> list[str]:
        """The paths of what ran."""
        return sorted(self._kept) if self._keys is None else self._keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: Any) -> Any:
        path = self.keys[index]
        if self._keys is None:
            return self._kept[path]
        return self._kept[f"model.{path}" if path else "model"].output


def lensed(subject: Subject, *, over_hooks: bool) -> Task:
    """`run_with_cache`, over raw hooks on the same hook points, or over its own forward."""
    bridge = libraries.lens(subject)
    ids = (subject.kwargs or {})["input_ids"]

    def forward() -> None:
        bridge(ids)

    def cached() -> Any:
        _, cache = bridge.run_with_cache(ids)
        return [cache[name].flatten() for name in distinct]  # which gives heads a dimension

    def hooked() -> Any:
        seen: dict[str, Any] = {}

        def make(name: str) -> Callable[..., None]:
            def hook(_module: Any, _args: Any, output: Any) -> None:
                seen[name] = output.detach().flatten()

            return hook

        handles = [points[name].register_forward_hook(make(name)) for name in distinct]
        try:
            bridge(ids)
        finally:
            for handle in handles:
                handle.remove()
        return [seen[name] for name in distinct]

    points = bridge.hook_dict
    _, cache = bridge.run_with_cache(ids)
    distinct = list({id(points[name]): name for name in cache if name in points}.values())
    raw = Way(hooked, bridge.original_model)
    own = Way(forward, bridge.original_model)
    return Task(Way(cached, bridge.original_model), raw if over_hooks else own, raw)
