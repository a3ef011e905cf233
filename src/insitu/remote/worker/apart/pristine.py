"""A model as it was when it was opened, and the same again after every job.

    before = Pristine(root)
    …                               # a job's pass, whole or broken off
    before.restore()                # False: its weights have changed, and it must be opened anew

A model's own forward keeps things in its modules: positions computed for a longer text, recorders
that a broken pass has left. Weights are looked at by torch's count of their changes.
"""

from typing import Any

import torch
from torch import nn

_CONTAINERS = (dict, list, set)


class Pristine:
    """What every module holds, and how often each tensor had been changed."""

    def __init__(self, root: nn.Module) -> None:
        self._modules = [
            (module, dict(module.__dict__), _inside(module)) for module in root.modules()
        ]
        self._tensors = [(tensor, tensor._version) for tensor in _tensors(self._modules)]

    @property
    def lasting(self) -> frozenset[int]:
        """The memory of the model's own tensors, by its address."""
        return frozenset(
            tensor.untyped_storage().data_ptr()
            for tensor, _ in self._tensors
            if type(tensor) in (torch.Tensor, nn.Parameter) and tensor.layout is torch.strided
        )

    def restore(self) -> bool:
        """Put back what a job's passes have left; False where a tensor itself has changed."""
        for module, attributes, inside in self._modules:
            _restore(module.__dict__, attributes)
            for container, content in inside:
                if isinstance(container, dict):
                    _restore(container, content)
                elif len(container) != len(content) or list(map(id, container)) != list(
                    map(id, content)
                ):
                    container.clear()
                    (container.update if isinstance(container, set) else container.extend)(content)
        return all(tensor._version == version for tensor, version in self._tensors)


def _inside(module: nn.Module) -> list[tuple[Any, Any]]:
    return [
        (value, type(value)(value) if type(value) in _CONTAINERS else value.copy())
        for value in module.__dict__.values()
        if isinstance(value, _CONTAINERS)
    ]


def _tensors(modules: list[tuple[nn.Module, dict[str, Any], Any]]) -> list[torch.Tensor]:
    """Parameters, buffers, and tensors that stand among a module's other attributes."""
    found = {}
    for module, attributes, _ in modules:
        held = (*attributes.values(), *module._parameters.values(), *module._buffers.values())
        found.update({id(it): it for it in held if isinstance(it, torch.Tensor)})
    return list(found.values())


def _restore(namespace: dict[Any, Any], before: dict[Any, Any]) -> None:
    if len(namespace) == len(before) and all(
        namespace.get(name) is value for name, value in before.items()
    ):
        return
    for name in namespace.keys() - before.keys():
        del namespace[name]
    namespace.update(before)
