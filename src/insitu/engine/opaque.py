"""Modules whose insides no pass can stop in: they call something else than what is in their tree.

    refuse(node)                    # raises, for a module within one
    for module in reached(root):    # all the others
        ...

`DataParallel` on several devices calls copies of its module, in threads of their own. A copy takes
over whatever stands in an instance's `__dict__`, so what is copied must not be armed: each copy's
forward would be the original's, with its parameters on the first device. On one device, or none, it
just calls its module. A TorchScript module runs a program of its own, outside of Python.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from insitu.errors import UsageError


def is_opaque(module: nn.Module) -> bool:
    """Whether a module's submodules are not called as they stand there."""
    if isinstance(module, nn.DataParallel):
        return len(module.device_ids) > 1
    return isinstance(module, torch.jit.ScriptModule)


def reached(root: nn.Module) -> Iterator[nn.Module]:
    """The modules of a tree that are called themselves."""
    modules = list(root.modules())
    within = {below for it in modules if is_opaque(it) for below in it.modules() if below is not it}
    return (module for module in modules if module not in within)


def refuse(around: Any) -> None:
    """Raise for what stands directly in a wrapped module that is opaque.

    Raises:
        UsageError: it is.
    """
    module = around._module
    if not is_opaque(module):
        return
    if isinstance(module, nn.DataParallel):
        raise UsageError(
            f"what is in {around._path} cannot be reached: it runs copies of its module on "
            f"{len(module.device_ids)} devices.",
            "DataParallel calls each copy in a thread of its own, where no pass can stop.",
            "trace the module in it, or give it one device: DataParallel(net, device_ids=[0]).",
        )
    raise UsageError(
        f"what is in {around._path} cannot be reached: it is a TorchScript module.",
        "it runs as a program of its own, in which no Python module is called; its own input and "
        "output can be read and written.",
        "trace the module it was made from, before torch.jit.script or torch.jit.trace.",
    )
