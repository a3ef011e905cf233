"""Running a module on fake tensors, which have shapes, dtypes and devices but no values.

with fake_tensors(net):
    net(torch.rand(5, 3)).shape
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_map_only

from insitu.engine import fake_dtypes, fake_shapes

_LOG = logging.getLogger("torch._subclasses.fake_tensor")
_CONTAINERS = (dict, list, set)
_ARMED = {"forward"}
"""Another thread's pass may put its wrapper into a module meanwhile: that is not ours to undo."""


@contextmanager
def fake_tensors(*modules: nn.Module) -> Iterator[Callable[[Any], Any]]:
    """Compute on fake tensors; the modules are afterwards as they were.

    Yields what makes fakes of the tensors in a value. What the modules are called with is made
    one before: a model may ask whether its input is, before it looks at values.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with ExitStack() as stack:
        stack.enter_context(_unlogged())
        for module in modules:
            stack.enter_context(_as_before(module))
        stack.enter_context(mode)
        yield stack.enter_context(_MakeFake(mode)).fake


def on_fakes() -> bool:
    """Whether everything is computed on fake tensors: in a scan, or to forecast a cache."""
    return any(isinstance(mode, FakeTensorMode) for mode in _get_current_dispatch_mode_stack())


class _MakeFake(TorchDispatchMode):
    """Hands every operation on with fake tensors in place of real ones.

    torch's own mode takes real ones too, but an in-place operation among real tensors alone then
    runs for real (torch 2.13: `buffer.add_(1)`, `buffer.copy_(x)`), and changes the model.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._mode = mode

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation on fakes; the same real tensor is the same fake every time."""
        fake_dtypes.check(func, args)
        args, kwargs = self.fake((args, kwargs or {}))
        return (fake_shapes.instead_of(func) or func)(*args, **kwargs)

    def fake(self, value: Any) -> Any:
        """The same value with a fake for every tensor in it."""
        return tree_map_only(Tensor, self._fake, value)

    def _fake(self, tensor: Tensor) -> Tensor:
        return tensor if isinstance(tensor, FakeTensor) else self._mode.from_tensor(tensor)


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keep torch from printing, beside the error it raises, what an operation failed with."""
    thread = get_ident()

    def is_elsewhere(record: logging.LogRecord) -> bool:
        return record.thread != thread

    _LOG.addFilter(is_elsewhere)
    try:
        yield
    finally:
        _LOG.removeFilter(is_elsewhere)


@contextmanager
def _as_before(root: nn.Module) -> Iterator[None]:
    """Put back what a run leaves in its modules: a fake tensor must not stay in one."""
    before = [(module, dict(module.__dict__), _inside(module)) for module in root.modules()]
    gradients = [(weight, weight.grad) for weight in root.parameters()]
    try:
        yield
    finally:
        for weight, gradient in gradients:
            if weight.grad is not gradient:
                weight.grad = gradient
        for module, attributes, inside in before:
            _restore(module.__dict__, attributes)
            for container, content in inside:
                if isinstance(container, dict):
                    _restore(container, content)
                elif list(map(id, container)) != list(map(id, content)):
                    container.clear()
                    (container.update if isinstance(container, set) else container.extend)(content)


def _inside(module: nn.Module) -> list[tuple[Any, Any]]:
    """The containers among a module's attributes, with what is in them."""
    return [
        (value, next(kind(value) for kind in _CONTAINERS if isinstance(value, kind)))
        for name, value in module.__dict__.items()
        if isinstance(value, _CONTAINERS) and not name.endswith("hooks")
    ]


def _restore(namespace: dict[Any, Any], before: dict[Any, Any]) -> None:
    for name in namespace.keys() - before.keys() - _ARMED:
        del namespace[name]
    for name, value in before.items():
        if namespace.get(name) is not value and name not in _ARMED:
            namespace[name] = value
