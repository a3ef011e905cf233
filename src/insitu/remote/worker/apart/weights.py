"""The weights of the model beside a job: what a block changes in them is changed where it computes.

    weights = Weights(root)             # in the process that jobs are forked from
    with torch.no_grad():
        model.lm_head.weight[:, 0] = 0  # a block
    weights.changed()                   # [(73, "weight", tensor)], to be told before the next call

Changes are seen by torch's count of them. `.data` has a count of its own, so it is led to
`.detach()`, which shares the tensor's.
"""

from typing import Any

import torch
from torch import nn

from insitu.errors import UsageError
from insitu.remote.wire import arrays

TRAINING = "training"
"""Told as if it were a weight."""

_data: Any = torch.Tensor.data


class Weight(nn.Parameter):
    """A parameter whose changes by way of `.data` are counted too."""

    @property
    def data(self) -> torch.Tensor:
        """The same memory, without a gradient."""
        return self.detach()

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        _data.__set__(self, value)
        with torch.no_grad():
            self.copy_(value)  # counts

    def __repr__(self) -> str:  # type: ignore[override]
        shown = repr(self.detach().requires_grad_(self.requires_grad))
        return f"Parameter containing:\n{shown}"


arrays.PLAIN.add(Weight)


class Weights:
    """Parameters and buffers of a model's modules, and how they were last told."""

    def __init__(self, root: nn.Module) -> None:
        for parameter in root.parameters():
            if type(parameter) is nn.Parameter:
                parameter.__class__ = Weight
        modules = list(root.modules())
        self._parts = [(m, dict(m._modules)) for m in modules]
        self._training = [m.training for m in modules]
        self._rows = [
            (number, name, store, tensor, tensor._version)
            for number, module in enumerate(modules)
            for store in (module._parameters, module._buffers)
            for name, tensor in store.items()
            if tensor is not None
        ]

    def touched(self) -> bool:
        """Whether one was changed, or replaced, since it was told."""
        for _, name, store, tensor, version in self._rows:
            if tensor._version != version or store.get(name) is not tensor:
                return True
        return False

    def changed(self) -> list[tuple[int, str, torch.Tensor | bool]]:
        """Tensors that are others, or have other values, than were told; and who trains now.

        Raises:
            UsageError: a module was put in or taken out.
        """
        found: list[tuple[int, str, torch.Tensor | bool]] = []
        for number, (module, parts) in enumerate(self._parts):
            if module._modules != parts:
                raise _has_no_effect(f"replaced a module in a {type(module).__name__}")
            if module.training is not self._training[number]:
                self._training[number] = module.training
                found.append((number, TRAINING, module.training))
        if self.touched():
            for at, (_, name, store, tensor, version) in enumerate(self._rows):
                if tensor._version != version or store.get(name) is not tensor:
                    found.append(self._told_anew(at))
        return found

    def _told_anew(self, at: int) -> tuple[int, str, torch.Tensor]:
        number, name, store, before, _ = self._rows[at]
        tensor = store.get(name)
        if tensor is None or tensor.shape != before.shape:
            raise _has_no_effect(f"gave a module another {name}")
        self._rows[at] = number, name, store, tensor, tensor._version
        return number, name, tensor


def _has_no_effect(did: str) -> UsageError:
    return UsageError(
        f"the block {did}.",
        "on this server the model computes in a process of its own; it takes over changed values "
        "of weights, and no other change of its modules.",
        "write to what modules return (.output, .skip), attach a module of your own, or run it "
        "with --trust self.",
    )
