"""Why a block did not get a gradient, or may not change one, as an error in three lines.

    raise missed(run, tensor)

A tensor is called by the name the block has for it, where there is one.
"""

from collections.abc import Iterator
from types import FrameType
from typing import Any, Protocol

from torch import Tensor
from torch.autograd.graph import GradientEdge

from insitu.engine import block_names
from insitu.engine.values import Forced, describe, mismatch
from insitu.errors import GradientError, WriteError

_IS_A_VIEW = "{} is a view, and the computation went on with the tensor it was taken of."


class Explained(Protocol):
    """What an explanation needs to know of a backward."""

    tensors: Any
    inputs: Any
    frame: FrameType | None
    entered_at: int
    closed: bool
    error: BaseException | None
    hooks: dict[int, tuple[Tensor, Any, bool]]
    passed: dict[int, tuple[Tensor, int]]
    slices: Any
    unshared: bool
    """Whether its block cannot be suspended: it is in no coroutine."""


def require_grad(run: Explained, tensor: Tensor) -> None:
    """Raise if torch keeps no gradients of a tensor."""
    if tensor.requires_grad:
        return
    name = _name(run, tensor)
    raise GradientError(
        f"{name} has no gradient: it does not require one.",
        "its requires_grad is False, so what was computed from it leads to no gradient of it.",
        f"call {_short(name)}.requires_grad_(True) right after reading it, before the model goes "
        "on; in generate(), also say grad=True.",
    )


def require_grad_of_loss(run: Explained, tensor: Tensor) -> None:
    """Raise, for the loss remembers nothing of what it was computed from."""
    name = _name(run, tensor)
    why = "nothing it was computed from did, or it was computed under no_grad()."
    if tensor._is_view() and tensor.is_leaf:
        why = _IS_A_VIEW.format(name) + " That one does not require gradients."
    raise GradientError(
        f"no gradient comes to {name}: the loss does not require grad.",
        why,
        f"call requires_grad_(True) on the whole output, before the model goes on with it"
        f"{', and take the part after it' if tensor._is_view() else ''}; "
        "in generate(), also say grad=True.",
    )


def missed(run: Explained, tensor: Tensor) -> GradientError:
    """The backward has ended without coming to a tensor."""
    if run.closed:
        return _closed("a gradient was asked for, but its backward has been closed.")
    require_grad(run, tensor)
    name = _name(run, tensor)
    if not any(_is_at(node, tensor) for node in _graph(run)):
        return _not_in_the_graph(name, tensor)
    hook = run.hooks.get(id(tensor))
    if hook is None or hook[2]:
        return _passed_unseen(run, name)
    if run.inputs is not None:
        why = "inputs= says which tensors get one, and the way to those does not lead through it."
        then = "name it in inputs= too, or leave inputs= out."
    else:
        why = "it is in the graph of the loss, but what was computed from it gave back None for it."
        then = "look at the backward of the torch.autograd.Function that it went into."
    return GradientError(f"no gradient came to {name}.", why, then)


def too_late(run: Explained, tensor: Tensor) -> GradientError:
    """A gradient was changed when it could no longer have an effect."""
    name = _name(run, tensor)
    return GradientError(
        f"the gradient of {name} was changed after the backward had passed it.",
        "gradients come in backward order, and what lies before it has been computed from it as "
        "it was: the change would have no effect.",
        f"change it before asking for gradients that come later, or take a copy to change: "
        f"{_short(name)}.grad.clone().",
    )


def check_end(run: Explained) -> None:
    """Raise if it was cut short, or a gradient was edited in place after it had passed."""
    if run.error is not None:
        error, run.error = run.error, None
        raise error
    for key, (value, version) in run.passed.items():
        if version >= 0 and value._version != version:
            raise too_late(run, run.hooks[key][0])
    if run.slices is not None:
        for value, version, tensor in run.slices.passed.values():
            if version >= 0 and value._version != version:
                raise too_late(run, tensor)


def not_innermost(run: Explained) -> GradientError:
    """A backward was to go on, or to end, while another, begun later, is still open."""
    return GradientError(
        "a backward was to go on while one that was begun later is still open.",
        "backwards of one thread nest, those of its tasks too: the one begun last has to end "
        "before another can go on.",
        "leave the block of the inner backward first."
        if run.unshared
        else "await before the block or after it; if within, hold one asyncio.Lock around the "
        "blocks of all tasks.",
    )


def closed_with_outer() -> GradientError:
    """A backward is cut short with the one that it was begun inside of."""
    return _closed("a backward was closed before it had come to its end.")


def used_twice() -> GradientError:
    """A backward's block was entered a second time."""
    return GradientError(
        "this backward has already been entered.",
        "it runs once, from the first gradient its block asks for to the end of the block.",
        "make another: with insitu.backward(loss): … (the one before needs retain_graph=True).",
    )


def other_thread() -> GradientError:
    """A parked backward can only be continued by the thread that started it."""
    return GradientError(
        "a gradient was asked for in another thread than the one its backward runs in.",
        "a backward is parked on the stack of the thread that began it.",
        "ask for it in that thread, and use the value here.",
    )


def fitting(run: Explained, tensor: Tensor, value: Any, old: Tensor) -> Tensor:
    """The gradient to go on with, checked against what it replaces."""
    if isinstance(value, Forced):
        value = value.value
    problem = mismatch(value, old)
    if problem is None:
        return value  # type: ignore[no-any-return]
    name = _name(run, tensor)
    raise WriteError(
        f"the value written to {_short(name)}.grad does not fit: {problem}.",
        "a gradient has the shape, dtype and device of its tensor, and torch takes no other.",
        f"write a value like {describe(old)}.",
    )


def _not_in_the_graph(name: str, tensor: Tensor) -> GradientError:
    short = _short(name)
    if tensor._is_view() and tensor._base is not None:
        why = _IS_A_VIEW.format(name)
        then = "ask for the gradient of that tensor, and take the same view of it."
    elif tensor.is_leaf:
        why = (
            f"{name} is a leaf; if it was told to require gradients, then after the values that "
            "the loss depends on had been computed."
        )
        then = f"call {short}.requires_grad_(True) right after reading it."
    else:
        why = (
            "no path in the graph of the loss leads to it: a detach(), a no_grad() or a replaced "
            "value lies between, or it belongs to another pass."
        )
        then = "read it in the pass that computes the loss, and do not cut the way between."
    return GradientError(
        f"no gradient came to {name}: the loss was not computed from it.", why, then
    )


def _closed(what: str) -> GradientError:
    return GradientError(
        what,
        "it was begun inside another one, and that one has failed.",
        "run the losses' backwards one after the other.",
    )


def _passed_unseen(run: Explained, name: str) -> GradientError:
    last = next(reversed(run.passed), None)
    by = "another tensor" if last is None else _short(_name(run, run.hooks[last][0]))
    return GradientError(
        f"the gradient of {name} was asked for, but the backward has already passed it.",
        f"gradients come in backward order, and this block had gone on to {by}; beside those "
        "asked for, only gradients of tensors that the block names are kept.",
        f"ask for it before {by}.grad, or give the tensor a name that the block uses.",
    )


def _name(run: Explained, tensor: Tensor) -> str:
    known = None
    if run.frame is not None:
        known = block_names.name_of(tensor, run.frame, run.entered_at)
    return known or f"this tensor, {describe(tensor)},"


def _short(name: str) -> str:
    return "t" if name.endswith(",") else name


def _graph(run: Explained) -> Iterator[Any]:
    """Every node of the graph behind the loss."""
    losses = run.tensors if isinstance(run.tensors, (list, tuple)) else [run.tensors]
    pending = [loss.node if isinstance(loss, GradientEdge) else _node(loss) for loss in losses]
    seen = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        pending.extend(following for following, _ in node.next_functions)


def _node(loss: Tensor) -> Any:
    return loss.grad_fn


def _is_at(node: Any, tensor: Tensor) -> bool:
    """Whether a node of the graph is where a tensor's gradient arrives."""
    if tensor.grad_fn is None:
        return getattr(node, "variable", None) is tensor
    return node is tensor.grad_fn
