"""Settings that a forward would swallow and ignore, refused with what to write instead.

model.trace(prompt, max_new_tokens=3)           # UsageError: use model.generate(…)
model.trace(prompt, output_hidden_state=True)   # UsageError: did you mean output_hidden_states?
"""

import functools
from typing import Any

from insitu.engine import paths
from insitu.errors import UsageError
from insitu.models.kinds import Kind


def require_known(
    method: str, given: dict[str, Any], model: Any, kind: Kind, further: frozenset[str]
) -> None:
    """Refuse settings that are neither the forward's nor its config's.

    Args:
        method: how the error calls it.
        given: the settings.
        model: the transformers model.
        kind: what its forward takes.
        further: words that would have been understood too, for "did you mean".

    Raises:
        UsageError: one would have no effect.
    """
    known = kind.takes | _of_every_forward() | further
    for name in sorted(set(given) - known):
        if _has_setting(model.config, name):
            continue
        if _has_setting(getattr(model, "generation_config", None), name):
            raise UsageError(
                f"{method}() was given {name}, a setting of generation.",
                "trace runs the model once; the setting would have no effect.",
                f"use model.generate(prompt, {name}={given[name]!r}), or leave it out.",
            )
        close = paths.nearest(name, known)
        raise UsageError(
            f"{method}() was given {name}, which is not understood.",
            f"{type(model).__name__} has no such argument, and would ignore it.",
            f"did you mean {close[0]}?" if close else "leave it out.",
        )


@functools.cache
def _of_every_forward() -> frozenset[str]:
    """The names that a transformers forward takes besides its own parameters."""
    from transformers.utils import TransformersKwargs

    return frozenset(TransformersKwargs.__annotations__)


def _has_setting(config: Any, name: str) -> bool:
    """Whether a configuration has a value of that name; its methods are no settings."""
    return hasattr(config, name) and not callable(getattr(config, name))
