"""What a run must leave as it was: each module's namespace and hooks, and all of torch's modes.

before = state(net)
…                              # a trace that fails
assert state(net) == before
"""

import gc
import signal
import sys
import threading

import torch
from leftovers import ours_on

from insitu.engine import running, save

save.mount()  # happens once per process, and stays

HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks",
    "_backward_pre_hooks", "_state_dict_hooks",
)  # fmt: skip

GLOBAL = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")


def of_module(module):
    """A module's own namespace: names, hooks, and which weights and submodules it holds."""
    own = module.__dict__
    assert not ours_on(module)
    return (
        tuple(own),
        own.get("forward"),
        type(module).__dict__.get("forward"),
        tuple(tuple(own[name].items()) for name in HOOKS),
        tuple((name, id(value)) for name, value in own["_parameters"].items()),
        tuple(own["_modules"].items()),
        module.training,
    )  # fmt: skip


def of_torch():
    """torch's modes on this thread, and what could be patched in it."""
    return {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")],
        "autocast dtype": torch.get_autocast_dtype("cpu"),
        "autocast cache": torch.is_autocast_cache_enabled(),
        "functions": torch._C._len_torch_function_stack(),
        "dispatches": torch._C._len_torch_dispatch_stack(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "anomaly": torch.is_anomaly_enabled(),
        "tensor": dict(vars(torch.Tensor)),
        "module": dict(vars(torch.nn.Module)),
        "autograd": (torch.autograd.backward, torch.autograd.grad),
        "hooks": [len(getattr(torch.nn.modules.module, f"_global_{kind}")) for kind in GLOBAL],
    }  # fmt: skip


def of_python():
    """What else of the process a run could leave changed."""
    return {
        "tracing": (sys.gettrace(), sys.getprofile()),
        "hooks": (sys.excepthook, sys.displayhook, threading.excepthook, sys.unraisablehook),
        "interrupt": signal.getsignal(signal.SIGINT),
        "recursion": sys.getrecursionlimit(),
        "threads": threading.active_count(),
        "collects": gc.isenabled(),
        "active": running.active.get(),
        "opened": list(running.opened),
    }


def state(*nets):
    """Everything at once, for comparison; greenlets are left to conftest's guard, which is slow."""
    modules = [of_module(module) for net in nets for module in net.modules()]
    return {"modules": modules, **of_torch(), **of_python()}
