"""`NNsight`: any torch module, wrapped for tracing.

model = NNsight(net)
with model.trace(x):
    h = model.layer1.output
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from insitu.engine.held import Run
from insitu.engine.interleave import Pass
from insitu.engine.order import Order
from insitu.engine.trace import Tracer
from insitu.engine.wrapped import WrappedModule
from insitu.errors import DeviceError, InputError, InputTypeError


class NNsight(WrappedModule):
    """Wrap a module so that its insides can be read and changed while it runs.

        model = NNsight(torch.nn.Sequential(torch.nn.Linear(5, 10), torch.nn.Linear(10, 2)))
        with model.trace(torch.rand(1, 5)):
            hidden = model[0].output
            model[0].output = hidden * 2
            out = model.output

    Submodules are wrapped when they are first named, so wrapping costs the same whatever the size.

    Args:
        module: the model. It is not changed; several wrappers of one module may live side by side.
    """

    def __init__(self, module: nn.Module) -> None:
        if not isinstance(module, nn.Module):
            raise InputTypeError(
                f"NNsight() wraps a torch.nn.Module, not {type(module).__name__}.",
                "it reads the modules of a network while they run.",
                "pass the network itself, or LanguageModel(name) for a language model by name.",
            )
        super().__init__(module, None, "")
        self.__dict__["_orders"] = {}
        self.__dict__["_beside"] = frozenset()

    _orders: dict[str, Order]
    """The order of modules in each kind of run, learned from the first one."""
    _beside: frozenset[nn.Module]
    """Modules of ours that are called between or after the model's steps."""

    @property
    def _model(self) -> nn.Module:
        return self._module

    def trace(self, *args: Any, **kwargs: Any) -> Tracer:
        """Run the module on an input, with the block of the `with` inside it.

            with model.trace(x) as tracer:
                h = model.layer1.output

        Args:
            *args, **kwargs: what the module's forward takes.

        Raises:
            InputError: no input was given.
        """
        return Tracer(self, self._forward(args, kwargs), "trace", False)

    def open(self, *args: Any, **kwargs: Any) -> Run:
        """Start a pass and hold it open, to be read, edited and stepped by later statements.

            run = model.open(x)
            h = model.layer1.output
            out = run.finish()

        Opening another pass of this model in the same thread closes the earlier one.
        """
        return Run(self, self._forward(args, kwargs), "trace", False)

    def _forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Pass], Any]:
        if not args and not kwargs:
            self._require_input()
        elif args and isinstance(args[0], str):
            raise InputTypeError(
                f"{type(self._module).__name__} was given text.",
                "NNsight passes its input on as it is, and this module takes tensors.",
                "pass a tensor, or wrap a language model with LanguageModel(name).",
            )
        return Forward(self._module, args, kwargs)

    def _require_input(self) -> None:
        parameters = inspect.signature(self._module.forward).parameters.values()
        if all(
            p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
            for p in parameters
        ):
            return
        raise no_input("trace", f"{type(self._module).__name__} needs {next(iter(parameters))}")


class Forward:
    """A call of a module that is still to be made."""

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.module = module
        self.args = args
        self.kwargs = kwargs

    def __call__(self, run: Pass) -> Any:
        """Make the call, inside its pass."""
        try:
            return self.module(*self.args, **self.kwargs)
        except RuntimeError as error:
            if (told := self._on_another_device()) is not None:
                raise told from error
            raise

    def _on_another_device(self) -> DeviceError | None:
        theirs = {p.device for p in self.module.parameters()}
        given = {
            v.device for v in (*self.args, *self.kwargs.values()) if isinstance(v, torch.Tensor)
        }
        if not theirs or not given - theirs:
            return None
        there, here = sorted(map(str, theirs)), sorted(map(str, given - theirs))
        return DeviceError(
            f"the input is on {here[0]}, the model on {there[0]}.",
            f"a forward pass needs both in one place; the parameters are on {', '.join(there)}.",
            f"pass input.to({there[0]!r}), or move the model with .to({here[0]!r}).",
        )


def no_input(method: str, why: str) -> InputError:
    """The error for a trace without anything to run on."""
    return InputError(
        f"{method}() was given no input.",
        f"{why}, and a block can only look inside a pass that runs on something.",
        f"pass the input: with model.{method}(input) as tracer: …",
    )
