"""What `model.transformer.h[0]?`, Shift-Tab and hover say: path, class, sizes, source.

    Module:     transformer.h.0
    Class:      GPT2Block
    Parameters: 198,272
    Output:     float32[1, 8, 128], as in the first trace
    Source:     …/transformers/models/gpt2/modeling_gpt2.py:263

IPython's inspector has `mime_hooks` for this: a public, per-type addition to what it shows. A hook
that answers None leaves everything else as it was.

A kernel is asked with code and a cursor, and ipykernel drops indexes (`h[0].attn` becomes `h.attn`,
which is nothing): of the kernel's one method for this, `do_inspect`, this instance gets a version
that reads module paths itself and hands all else on.
"""

import inspect
from collections.abc import Callable
from html import escape
from typing import Any

from insitu.engine.source.operations import Operation
from insitu.engine.wrapped import WrappedModule
from insitu.notebook.spoken import path_at
from insitu.twins import style

_SHEET = "& table{border-collapse:collapse}& th,& td{text-align:left;padding:1px 16px 1px 0}"


Rows = list[tuple[str, str]]
"""What IPython's inspector shows: names and what is said of each."""


def facts(node: WrappedModule | Operation) -> Rows:
    """What there is to say of a module or an operation, without running anything."""
    if isinstance(node, Operation):
        return _facts_of_operation(node)
    module = node._module
    rows = [
        ("Module", node._path),
        ("Class", type(module).__name__),
        ("Parameters", f"{sum(p.numel() for p in module.parameters()):,}"),
    ]
    for kind, order in node._root._orders.items():
        seen = order.called.get(module)
        if seen is not None and seen.output:
            rows.append(("Output", f"{seen.output}, as in the first {kind}"))
            break
    if place := source(module):
        rows.append(("Source", place))
    return rows


def _facts_of_operation(operation: Operation) -> Rows:
    named, definition = operation._named, operation._in._plan.definition
    return [
        ("Operation", operation._path),
        ("Text", definition.line(named.line).strip()),
        ("Of", operation._in._chain.function.__qualname__),
        ("Source", f"{definition.file}:{named.line}"),
    ]


def source(module: Any) -> str:
    """File and line of a module's forward; empty when it has none in Python."""
    try:
        forward = inspect.unwrap(type(module).forward)
        file = inspect.getsourcefile(forward)
        return f"{file}:{forward.__code__.co_firstlineno}" if file else ""
    except (TypeError, AttributeError):
        return ""


def text(data: Any) -> Rows | None:
    """The inspector's `text/plain` for wrapped modules."""
    return facts(data.obj) if isinstance(data.obj, (WrappedModule, Operation)) else None


def html(data: Any) -> Rows | None:
    """The inspector's `text/html` for wrapped modules: IPython makes a heading of each name."""
    if not isinstance(data.obj, (WrappedModule, Operation)):
        return None
    (_, path), *others = facts(data.obj)
    rows = "".join(
        f'<tr><th scope="row" class="soft">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in others
    )
    return [(escape(path), style.page(_SHEET, f"<table>{rows}</table>"))]


def register(ip: Any) -> Callable[[], None]:
    """Add the hooks to a shell's inspector; gives what takes them away again."""
    hooks = ip.inspector.mime_hooks
    ours: dict[str, Callable[[Any], Rows | None]] = {"text/plain": text, "text/html": html}
    before = {mime: hooks[mime] for mime in ours if mime in hooks}
    hooks.update({mime: _with(hook, before.get(mime)) for mime, hook in ours.items()})
    leave_kernel = _ask_with_indexes(ip)

    def unregister() -> None:
        leave_kernel()
        for mime in ours:
            hooks.pop(mime, None)
        hooks.update(before)

    return unregister


def _with(hook: Callable[[Any], Rows | None], other: Any) -> Callable[[Any], Any]:
    """A hook, and for what it leaves alone another that was there before."""
    if other is None:
        return hook

    def either(data: Any) -> Any:
        said = hook(data)
        return other(data) if said is None else said

    return either


def _ask_with_indexes(ip: Any) -> Callable[[], None]:
    """Let the kernel, where there is one, find modules behind indexes."""
    kernel = getattr(ip, "kernel", None)
    if kernel is None:
        return lambda: None
    theirs = kernel.do_inspect

    def do_inspect(
        code: str, cursor_pos: int, detail_level: int = 0, omit_sections: tuple[str, ...] = ()
    ) -> Any:
        path = path_at(code, cursor_pos, ip.user_ns)
        if path is None:
            return theirs(code, cursor_pos, detail_level, omit_sections)
        data = ip.object_inspect_mime(path, detail_level, omit_sections)
        return {"status": "ok", "found": True, "data": data, "metadata": {}}

    kernel.do_inspect = do_inspect
    return lambda: kernel.__dict__.pop("do_inspect", None)
