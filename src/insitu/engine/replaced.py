"""Modules that the user has put in the place of others: nodes follow, the old ones are let go of.

    net.head = torch.nn.Linear(10, 3)
    with model.trace(x):
        model.head.output                # the new one's

What a wrapper learned of its modules is learned anew: it names the old ones, and may be wrong. It
looks at a place only when a block asks for it, since walking the model in each pass would cost more
than the pass; until then, what was learned keeps the old one alive.
"""

from typing import Any


def look_up(node: Any) -> None:
    """Look a node's module up again, from the root down.

    Raises:
        UnknownModuleError: nothing stands in its place any more.
    """
    parent = node._parent
    if parent is None:
        return
    look_up(parent)
    module = parent._submodule(node._name)
    if module is None:
        let_go(parent)
        raise parent._unknown(node._name)
    node.__dict__["_place"] = (parent._module, parent._module._modules, node._name)
    if module is not node._module:
        node.__dict__["_module"] = module
        node.__dict__.pop("_source", None)
        let_go(node)


def let_go(node: Any) -> None:
    """Forget the modules wrapped below a node, and what the model's passes have taught of them."""
    for name, child in node._children.items():
        if node.__dict__.get(str(name)) is child:
            del node.__dict__[str(name)]
    node._children.clear()
    root = node._root
    for learned in (root._orders, root._seen, root._batched, root._reads):
        learned.clear()
    root.__dict__["_sizes"] = None
