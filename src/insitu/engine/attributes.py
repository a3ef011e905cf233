"""What a wrapped module gives for its module's own attributes.

model.lm_head.weight                # as it is
model.to("cuda").trace(prompt)      # where torch returns the module, this is the wrapped one
model.gains[0]                      # a ParameterList's parameter
model.heads.items()                 # of a ModuleDict: names and wrapped modules
"""

import functools
from typing import Any

from torch import nn

PARAMETERS = (nn.ParameterList, nn.ParameterDict)
"""Modules that hold parameters as a list or a dict does."""
_CHAINED = {
    *("apply", "bfloat16", "cpu", "cuda", "double", "eval", "float", "half", "requires_grad_"),
    *("share_memory", "to", "to_empty", "train", "type"),
}


def seen(node: Any, value: Any) -> Any:
    """What an attribute holds, or the node of a module that it leads to: a property may, and the
    wrapper of torch.compile."""
    if isinstance(value, nn.Module):
        for path, module in node._module.named_modules():
            if module is value:
                return node._at_path(path) if path else node
    name = getattr(value, "__name__", None)
    if name in ("items", "values") and isinstance(node._module, nn.ModuleDict):
        wrapped = {key: node[key] for key in node._module}
        return getattr(wrapped, name)
    return _chained(node, value) if name in _CHAINED else value


def holds(node: Any, item: Any) -> bool:
    """Whether a wrapped module has one directly in it: by name, wrapped or as it is."""
    if isinstance(node._module, PARAMETERS):
        return item in node._module
    if isinstance(item, str):
        return node._child(item) is not None
    return any(found is item or found._module is item for found in node)


def _chained(node: Any, method: Any) -> Any:
    """A method that returns the module it changes, made to return the node."""

    @functools.wraps(method)
    def returning(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        return node if result is node._module else result

    return returning
