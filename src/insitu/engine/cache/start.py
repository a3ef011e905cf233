"""`tracer.cache(...)`: what is asked for is checked and scanned, and the recorder begins to listen.

cache = start(run, "transformer.h.*", dtype=torch.bfloat16, budget=2**30)
"""

from collections.abc import Mapping
from typing import Any, Protocol, Unpack

from insitu.engine.cache.activations import ActivationCache
from insitu.engine.cache.forecast import Forecast, forecast, may_be_forecast
from insitu.engine.cache.globs import chosen
from insitu.engine.cache.options import Options, Settings, settings
from insitu.engine.cache.record import INPUTS, OUTPUT, Plan, Recorder, Taps
from insitu.engine.cache.store import SHARD_BYTES, Budget, Spill
from insitu.engine.wrapped import WrappedModule
from insitu.errors import UsageError


class Traced(Taps, Protocol):
    """What a cache needs of a pass."""

    root: Any
    stepping: bool

    @property
    def arming(self) -> Any:
        """The whole pass, with its `call`."""


def start(run: Traced, modules: Any = None, **options: Unpack[Options]) -> ActivationCache:
    """Cache what modules of a pass take and return from now on: what `tracer.cache` does.

    Args:
        run: the pass.
        modules: a wrapped module, a path or pattern, or a list of those; all when None.
        **options: see `Options`.

    Raises:
        UnknownModuleError: a path or pattern names no module.
        UsageError: an option is unknown or has a value it cannot have.
        CacheBudgetError: a scan of the same call exceeds the budget, and there is no `spill`.
        CacheFileError: the spill folder holds a cache already.
    """
    wanted = settings(options)
    nodes = chosen(run.root, modules)
    if not nodes:
        raise UsageError(
            "no modules were named to cache.",
            f"modules={modules!r} is empty.",
            "leave modules out to cache all of them.",
        )
    name = type(run.root._module).__name__
    budget, expected = _budget(run, nodes, wanted, name)
    recorder = Recorder(nodes, wanted.plan, budget)
    recorder.listen(run)
    plan = wanted.plan
    sides = frozenset([OUTPUT] * plan.outputs + [INPUTS] * plan.inputs)
    return ActivationCache(recorder.records, sides, name, root=run.root, forecast=expected)


def _budget(
    run: Traced, nodes: Mapping[str, WrappedModule], wanted: Settings, name: str
) -> tuple[Budget | None, Forecast | None]:
    """What counts a cache's bytes, where they are to be counted, and what a scan expects."""
    if wanted.budget is None and wanted.spill is None:
        return None, None
    spill = None
    if wanted.spill is not None:
        shard_bytes = min(SHARD_BYTES, wanted.budget or SHARD_BYTES)
        spill = Spill(wanted.spill, shard_bytes, name, wanted.plan.device)
    if wanted.budget is None:
        return Budget(None, spill), None
    try:
        expected = _scanned(run, nodes, wanted.plan)
    except UsageError as error:
        return Budget(wanted.budget, spill, f"{error.what.rstrip('.')} ({error.why})"), None
    if expected is None:
        call = "a generation" if run.stepping else "this call"
        return Budget(wanted.budget, spill, f"{call} cannot be forecast"), None
    budget = Budget(wanted.budget, spill)
    budget.expect(expected)
    return budget, expected


def _scanned(run: Traced, nodes: Mapping[str, WrappedModule], plan: Plan) -> Forecast | None:
    """What a scan of the pass's call expects; None where making it twice would be noticed."""
    whole, module = run.arming, run.root._module
    call = whole.call
    given = (getattr(call, name, None) for name in ("args", "kwargs", "settings"))
    if run.stepping or whole.started or not may_be_forecast(module, list(given)):
        return None
    return forecast(module, lambda: call.make(None), nodes, plan)
