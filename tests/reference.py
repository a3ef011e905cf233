"""The oracle: what plain torch hooks see and change. Knows nothing of Insitu.

outputs(net, ["layer1"], x)["layer1"]                     # [tensor], one per call
inputs(net, ["layer1"], x)["layer1"]                      # [(args, kwargs)], one per call
edited(net, {"layer1": lambda value, call: value * 2}, x) # what the net then returns
count(net, x)                                             # {"layer1": 1, …} calls of each module
"""

from collections import Counter
from contextlib import contextmanager


def at(net, path):
    return net.get_submodule(path) if path not in ("", "model") else net


def copy(value):
    if isinstance(value, (tuple, list)):
        return type(value)(map(copy, value))
    return value.detach().clone() if hasattr(value, "detach") else value


@contextmanager
def hooks(handles):
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def outputs(net, paths, *args, call=None, **kwargs):
    seen = {path: [] for path in paths}
    handles = [
        at(net, path).register_forward_hook(lambda m, a, out, p=path: seen[p].append(copy(out)))
        for path in paths
    ]
    with hooks(handles):
        (call or net)(*args, **kwargs)
    return seen


def inputs(net, paths, *args, call=None, **kwargs):
    seen = {path: [] for path in paths}
    handles = [
        at(net, path).register_forward_pre_hook(
            lambda m, a, k, p=path: seen[p].append((copy(a), dict(k))), with_kwargs=True
        )
        for path in paths
    ]
    with hooks(handles):
        (call or net)(*args, **kwargs)
    return seen


def edited(net, edits, *args, call=None, **kwargs):
    """Run with outputs replaced: `edits[path](output, call_number)`; None leaves it as it is."""
    calls = Counter()

    def change(path):
        def hook(module, given, out):
            calls[path] += 1
            return edits[path](out, calls[path] - 1)

        return hook

    with hooks([at(net, path).register_forward_hook(change(path)) for path in edits]):
        return (call or net)(*args, **kwargs)


@contextmanager
def counting(net):
    """Count the calls of every module while the block runs."""
    calls = Counter()

    def note(path):
        return lambda m, a: calls.update([path or "model"])

    with hooks([m.register_forward_pre_hook(note(p)) for p, m in net.named_modules()]):
        yield calls
