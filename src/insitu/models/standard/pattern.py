"""Attention scores and pattern, [batch, head, query, key], read and written.

    with model.trace(prompt):
        pattern = model.layers[3].attention.pattern     # rows sum to one
        pattern[:, 2] = 0                               # the model goes on with it

The kernels that transformers uses by default (`sdpa`, flash) never form a pattern. So a pass that
asks for one runs the attention of that one module, for that pass, through the eager function of the
model's own file, with the mask in the form which that function takes. The other modules stay as
they are; nothing of the model or its configuration is changed.
"""

import sys
from contextlib import suppress
from types import FunctionType
from typing import Any, cast

import torch

from insitu.engine.running import active
from insitu.engine.source.arm import prepare as rewrite
from insitu.engine.source.chain import follow
from insitu.engine.source.operations import Operation, Source, source_of, standing_in
from insitu.engine.values import describe
from insitu.engine.views import View
from insitu.errors import SourceError, UnknownOperationError
from insitu.models.standard.standing import at, standing

_CALL = "attention_interface_0"
"""The call, in the forward of every attention of transformers, of the kernel that was chosen."""
_EAGER = "eager_attention_forward"
_SOFTMAX, _DROPOUT = "nn_functional_softmax_0", "nn_functional_dropout_0"


class Pattern(View):
    """`scores` and `pattern` of an attention, [batch, head, query, key]."""

    @property
    def scores(self) -> torch.Tensor:
        """Before softmax, masked: a masked key has the least number of the dtype added."""
        found: torch.Tensor = _operation(self._node, _SOFTMAX, "scores").input
        return found

    @scores.setter
    def scores(self, value: Any) -> None:
        _operation(self._node, _SOFTMAX, "scores").input = value

    @property
    def pattern(self) -> torch.Tensor:
        """After softmax: each query's weights over the keys, [batch, head, query, key]."""
        found: torch.Tensor = _operation(self._node, _DROPOUT, "pattern").input
        return found

    @pattern.setter
    def pattern(self, value: Any) -> None:
        _operation(self._node, _DROPOUT, "pattern").input = value


def prepare(node: Any) -> None:
    """Leave a running pass able to stop at the pattern of a module that is about to begin."""
    run = active.get()
    if run is None or run.closed or run.whole is not node._whole:
        return
    with suppress(SourceError, UnknownOperationError):  # asked for, the pattern says so itself
        rewrite(run, _call(node))


def core(node: Any) -> Any:
    """The wrapped module in whose forward the attention is computed."""
    return at(node, standing(node).family.core)


def eagerly(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **settings: Any
) -> Any:
    """Attention of a module as the eager function of its model's file computes it."""
    kernel = module.config._attn_implementation
    if kernel == "sdpa":  # it leaves these out, and the model as it is has none of them
        settings = {k: v for k, v in settings.items() if k not in ("softcap", "sliding_window")}
    if kernel != "eager":
        attention_mask = additive(module, query, key, attention_mask, settings)
    eager = eager_of(module)
    return eager(module, query, key, value, attention_mask, **settings)


def eager_of(module: Any) -> FunctionType:
    """The eager attention function in the file of a module's class, or of one it is made from.

    Raises:
        SourceError: there is none.
    """
    for kind in type(module).__mro__:
        found = getattr(sys.modules.get(kind.__module__), _EAGER, None)
        if isinstance(found, FunctionType):
            return found
    raise _not_as_known(module, f"its file has no function {_EAGER}")


def additive(
    module: Any, query: torch.Tensor, key: torch.Tensor, mask: Any, settings: dict[str, Any]
) -> torch.Tensor | None:
    """A kernel's mask as what is added to scores, [batch, 1, query, key]; None for none.

    Kernels leave the causal mask out where they can make it themselves, and take booleans, true
    where a query sees a key: of every query, or of all alike, [batch, key].
    """
    if mask is None or (isinstance(mask, torch.Tensor) and mask.dim() == 2):
        seen = _causal(module, query, key, settings)
        if mask is None and seen is None:
            return None
        padded = None if mask is None else mask.bool()[:, None, None, -key.shape[2] :]
        mask = seen if padded is None else padded if seen is None else seen & padded
    if not isinstance(mask, torch.Tensor) or mask.dim() != 4:
        raise SourceError(
            f"the attention of {type(module).__name__} has a mask that only its kernel reads.",
            f"it is {describe(mask)}; scores are masked by a tensor [batch, 1, query, key].",
            'load the model with attn_implementation="eager" or "sdpa".',
        )
    if mask.dtype is not torch.bool:
        return mask
    hidden = torch.finfo(query.dtype).min
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, hidden)


def _causal(
    module: Any, query: torch.Tensor, key: torch.Tensor, settings: dict[str, Any]
) -> torch.Tensor | None:
    """Which keys a query sees where no mask says so; None for all."""
    given = settings.get("is_causal")
    causal = getattr(module, "is_causal", True) if given is None else given
    queries, keys = query.shape[2], key.shape[2]
    window = settings.get("sliding_window")
    if not causal or (queries == 1 and (window is None or keys <= window)):
        return None
    whole = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
    seen = whole.tril(keys - queries)
    if window is not None:
        seen = seen.triu(keys - queries - window + 1)
    return seen[None, None]


def _call(node: Any) -> Operation:
    found: Operation = source_of(core(node))[_CALL]
    return found


def _operation(node: Any, name: str, called: str) -> Any:
    """The operation of the eager function whose input is a named value."""
    inner = core(node)
    call = _call(node)
    known = inner.__dict__.get("_eager")
    if known is None or known[0] is not call:
        known = inner.__dict__["_eager"] = (
            call,
            {},
            _eager_source(call, inner._module, node._path),
        )
    operations: dict[str, Operation] = known[1]
    if (found := operations.get(called)) is None:
        source: Source = known[2]
        found = operations[called] = Operation(source, getattr(source, name)._named)
        object.__setattr__(found, "_path", f"{node._path}.{called}")
    return found


def _eager_source(call: Operation, module: Any, path: str) -> Source:
    eager = eager_of(module)
    outer = standing_in(call, cast(FunctionType, eagerly))
    found = Source(outer["eager_0"], follow(eager, _EAGER), {})
    for operation, called in (
        (found._owner, f"the eager attention of {path}"),
        (outer._owner, path),
    ):
        object.__setattr__(operation, "_path", called)  # as errors name them
    if any(list(found._plan.by_name).count(name) != 1 for name in (_SOFTMAX, _DROPOUT)):
        raise _not_as_known(module, f"{_EAGER} has not one softmax and one dropout after it")
    return found


def _not_as_known(module: Any, why: str) -> SourceError:
    return SourceError(
        f"the pattern of {type(module).__name__} cannot be had.",
        f"this version of transformers computes it in another way: {why}.",
        "read the operations themselves, as print(attention.source) shows them.",
    )
