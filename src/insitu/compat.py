"""Names that older documents use: their code runs unchanged after `import insitu as nnsight`.

    tokens = nnsight.list().save()          # Python's own list
    best = nnsight.apply(torch.argmax, h)   # torch.argmax(h)
    nnsight.log(best)                       # print(best)
    nnsight.stop()                          # tracer.stop()
    nnsight.Globals.cache.clear()           # what was found out about blocks and forwards goes

    @nnsight.trace                          # the function works as before, and is marked
    def decode(tokens): ...

They are reached as `insitu.<name>` alone and are in no list of the package's names. A block is
ordinary Python here, so most of them are what they are called; `iter` and `cond` say what to write.
The variable NDIF_API_KEY is read as a key too: `insitu.settings` tells when.
"""

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from insitu.engine.capture import per_code, text
from insitu.engine.local import MARK
from insitu.engine.running import active
from insitu.engine.source import kept
from insitu.engine.trace import Stop
from insitu.engine.wrapped import WrappedModule
from insitu.errors import NoTraceError, UsageError

Function = TypeVar("Function", bound=Callable[..., Any])


def apply(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function: `apply(torch.argmax, h, dim=-1)` is `torch.argmax(h, dim=-1)`."""
    return function(*args, **kwargs)


def log(*values: Any) -> None:
    """Print values, now; the same as `tracer.log`."""
    print(*values)


def stop() -> NoReturn:
    """End the pass and the block here; the same as `tracer.stop()`.

    Raises:
        NoTraceError: no trace is running.
    """
    run = active.get()
    while run is not None and run.closed:
        run = run.outer
    if run is None:
        raise NoTraceError(
            "stop() was called outside a trace.",
            "it ends the pass that its block belongs to, and no block is running.",
            "call it inside `with model.trace(...) as tracer:`, where tracer.stop() does the same.",
        )
    raise Stop(run.arming)


def trace(function: Function) -> Function:
    """Mark a function for use by a block that runs elsewhere, and give it back as it is.

        @insitu.trace
        def decode(tokens):
            return model.tokenizer.decode(tokens)

    Raises:
        UsageError: it is no function; a trace is begun by a model's own method.
    """
    try:
        if not callable(function) or isinstance(function, WrappedModule):
            raise TypeError
        setattr(function, MARK, True)
    except (AttributeError, TypeError):
        raise UsageError(
            f"insitu.trace was given {type(function).__name__}.",
            "it is a decorator, and marks a function of yours; a trace belongs to a model.",
            "write @insitu.trace above `def`, or `with model.trace(prompt) as tracer:`.",
        ) from None
    return function


def iter(*values: Any) -> NoReturn:
    """Say what to write in its place."""
    raise _use_python("iter", "for item in values:", "with nnsight.iter(values) as item:")


def cond(*values: Any) -> NoReturn:
    """Say what to write in its place."""
    raise _use_python("cond", "if condition:", "with nnsight.cond(condition):")


def _use_python(name: str, now: str, before: str) -> UsageError:
    return UsageError(
        f"{name}() belongs to an older way of writing traces.",
        "a block is ordinary Python here, and its values are real ones.",
        f"write `{now}` in place of `{before}`.",
    )


class Kept:
    """What has been found out about code: blocks taken out of their frames, forwards rewritten.

    It is looked up by code objects and goes when they do, so that it is never out of date.
    """

    def clear(self) -> None:
        """Let go of it; what is wanted again is found out again. Running traces are not hurt."""
        for known in tuple(per_code.known.values()):
            for found in (known.bodies, known.entered, known.rests, known.uses, known.enters):
                found.clear()
        kept._known.clear()
        text._parsed.cache_clear()


class Globals:
    """`Globals.cache.clear()`, of older documents."""

    cache = Kept()


OLDER: dict[str, Any] = {
    **{kind.__name__: kind for kind in (
        bool, bytearray, bytes, complex, dict, float, int, list, set, str, tuple,
    )},
    **{own.__name__: own for own in (Globals, apply, cond, iter, log, stop, trace)},
}  # fmt: skip
"""Every name that `insitu.<name>` finds here."""
