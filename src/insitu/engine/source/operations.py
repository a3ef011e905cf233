"""The operations inside a forward, as a block sees them: `model.transformer.h[0].attn.source`.

    print(model.transformer.h[0].attn.source)   # the forward's text, its operations named
    with model.trace("Hello"):
        source = model.transformer.h[0].attn.source
        scores = source.attention_interface_0.source.torch_matmul_0.output
        heads = source.attention_interface_0.output
        source.self_c_proj_0.output[:] = 0

An operation has `.output`, `.input`, `.inputs`, `.skip` and `.next` like a module, and `.source`:
that of the function, method or module it calls.
"""

from collections.abc import Iterator
from types import FunctionType
from typing import Any

from torch import nn

from insitu.engine import paths
from insitu.engine.blame import written
from insitu.engine.order import INPUT, OUTPUT
from insitu.engine.running import active, find
from insitu.engine.source import listing, missed, moved
from insitu.engine.source.arm import arm, prepare
from insitu.engine.source.chain import Chain, follow, of
from insitu.engine.source.kept import plan_of
from insitu.engine.source.names import CALL, Named
from insitu.engine.source.resolve import Scope, UnknownError, arguments_known, value_of
from insitu.engine.steps import next_call
from insitu.engine.stopping import Stopping
from insitu.errors import SourceError, TraceError, UnknownOperationError

_SITES = ("output", "input", "inputs")
_SHOWN_MAX = 8


class Source:
    """The operations of one function. Naming and printing them runs nothing.

    source = model.transformer.h[0].attn.source
    print(source)                   # the text, with names and line numbers
    [op for op in source]           # every operation, in the order of the text
    source.self_c_proj_0            # one, by its name; source[36] by its position
    """

    def __init__(self, owner: Any, chain: Chain, known: dict[str, Any]) -> None:
        self._owner = owner
        self._chain = chain
        self._plan = plan_of(chain.function)
        self._known = known
        self._path = f"{owner._path}.source"
        self._stands_in = False
        self._made: dict[int, Operation] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        plan = self._plan
        moved.check(self._chain.function, plan, name, self._path)
        named = plan.by_name.get(name)
        if named is None:
            raise _unknown(self, name)
        found = self.__dict__[name] = self[named.index]
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            raise UnknownOperationError(
                f"{self._path}.{name} cannot be written.",
                "an operation's output, input and inputs can be written, the operation cannot.",
                f"write {self._path}.{name}.output = value.",
            )
        object.__setattr__(self, name, value)

    def __getitem__(self, key: int | str) -> "Operation":
        """One operation, by its name, or by its position in the text as it is installed."""
        if isinstance(key, str):
            found: Operation = getattr(self, key)
            return found
        named = self._plan.operations[key]
        made = self._made.get(named.index)
        return made or self._made.setdefault(named.index, Operation(self, named))

    def __iter__(self) -> Iterator["Operation"]:
        return (self[index] for index in range(len(self)))

    def __len__(self) -> int:
        return len(self._plan.operations)

    def __bool__(self) -> bool:
        return True

    def __contains__(self, name: object) -> bool:
        return name in self._plan.by_name

    def __dir__(self) -> list[str]:
        return list(self._plan.by_name)

    def __repr__(self) -> str:
        definition = self._plan.definition
        where = listing.place(definition.file, definition.first)
        head = f"{self._path}: {self._chain.function.__qualname__}, {where}"
        return listing.text(head, self._plan)


class Operation:
    """One call or assignment of a forward: its sites exist while a pass runs."""

    __slots__ = (
        "_around", "_in", "_index", "_inner", "_module", "_name", "_named", "_outermost",
        "_outermost_chain", "_parent", "_path", "_root", "_whole", "_within",
    )  # fmt: skip

    def __init__(self, source: Source, named: Named) -> None:
        owner = source._owner
        is_outermost = isinstance(owner._module, nn.Module)
        values = {
            "_in": source,
            "_named": named,
            "_index": named.index,
            "_within": owner._module,
            "_name": named.name,
            "_path": f"{source._path}.{named.name}",
            "_module": self,  # it is its own key in a pass, where a wrapped module's is the module
            "_parent": owner,
            "_outermost": owner if is_outermost else owner._outermost,
            "_around": owner._module if is_outermost else owner._around,
            "_outermost_chain": source._chain if is_outermost else owner._outermost_chain,
            "_root": owner._root,
            "_whole": owner._whole,
            "_inner": None,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def output(self) -> Any:
        """What the call returned, or the value that is assigned.

            with model.trace(x):
                h = model.layer.source.self_act_0.output          # read
                model.layer.source.self_act_0.output[:, 0] = 0    # edit in place
                model.layer.source.self_act_0.output = h * 2      # replace

        Raises:
            OutOfOrderError: the model has passed it.
            NeverRanError: the pass does not come to it.
            NoTraceError: no pass is running.
            WriteError: a value of another shape, dtype or device was written without `force`.
        """
        run = active.get()
        if run is None or run.root is not self._root or run.closed:
            run = find(self)
        key = self if self in run.arming.outputs else arm(run, self, OUTPUT)
        return run.value if run.at_output is key else run.read_output(key, key)

    @property
    def input(self) -> Any:
        """The call's first argument, given by position or by keyword; written like `output`."""
        run, key = self._running(INPUT)
        args, kwargs = run.read_inputs(key)
        return args[0] if args else next(iter(kwargs.values()), None)

    @property
    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """All arguments: `(args, kwargs)`; written like `output`."""
        run, key = self._running(INPUT)
        arguments: tuple[tuple[Any, ...], dict[str, Any]] = run.read_inputs(key)
        return arguments

    def skip(self, value: Any) -> None:
        """Replace the next call: it computes nothing and gives `value`."""
        run, key = self._running(INPUT)
        run.skip(key, value)

    def next(self) -> "Operation":
        """Go to the next call, in a generation to the next step: `op.next().output`."""
        run, key = self._running(INPUT)
        next_call(key, run)
        return self

    @property
    def source(self) -> Source:
        """The operations of what this one calls: a function, a method or a module.

        Raises:
            SourceError: it calls nothing, or what it calls is not known or not written in Python.
        """
        run = active.get()
        inner: Source | None = self._inner
        if run is not None and inner is not None and self in (run.arming.sites or ()):
            return inner  # it has been found in this pass
        callee = _callee(self)
        if isinstance(callee, nn.Module):
            if run is not None and run.whole is self._whole:
                prepare(run, self)  # the call itself may be asked for when the module has run
            return source_of(_node_of(self, callee))
        chain = follow(callee, f"{self._path}.source")
        if inner is None or inner._chain.function is not chain.function:
            scope = _scope(self._in)
            known = arguments_known(self._named.node, chain.function, chain.bound, scope)
            inner = Source(self, chain, known)
            object.__setattr__(self, "_inner", inner)
        return inner

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "output":
            run, key = self._running(OUTPUT)
            if run.at_output is not key:
                run.read_output(key, key)
            run.value = written(run, value, run.value, self, "output")
        elif name == "inputs":
            run, key = self._running(INPUT)
            args, kwargs = written(run, value, run.read_inputs(key), self, "inputs")
            run.write_inputs(key, tuple(args), dict(kwargs))
        elif name == "input":
            self._write_input(value)
        else:
            raise _no_such_site(self, name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise _no_such_site(self, name)

    def __repr__(self) -> str:
        head = f"{self._path}: line {self._named.line} of {self._in._chain.function.__qualname__}"
        return listing.excerpt(head, self._in._plan, self._named)

    def __dir__(self) -> list[str]:
        return [*_SITES, "skip", "next", "source"]

    def _running(self, kind: int) -> tuple[Any, "Operation"]:
        """The pass around the caller, and what is armed in it for this operation."""
        run = find(self)
        armed = run.arming.outputs if kind == OUTPUT else run.arming.inputs
        return run, self if self in armed else arm(run, self, kind)

    def _write_input(self, value: Any) -> None:
        run, key = self._running(INPUT)
        args, kwargs = run.read_inputs(key, 3)
        first = next(iter(kwargs), "input")
        old = args[0] if args else kwargs.get(first)
        value = written(run, value, old, self, "input")
        if args:
            run.write_inputs(key, (value, *args[1:]), kwargs)
        else:
            run.write_inputs(key, (), {**kwargs, first: value})

    def _arm(self, arming: Any) -> Any:
        return arm(arming, self, INPUT)

    def _missed(self, run: Any, kind: int, overrun: bool) -> TraceError:
        return missed.explain(self, run, kind, overrun)


def source_of(node: Any) -> Source:
    """The operations of a wrapped module's forward."""
    around, siblings, name = node._place
    is_stale = around is not None and siblings.get(name) is not node._module
    if is_stale and name not in node._parent._extras:
        node._refresh()  # the user has put another module there
    module: nn.Module = node._module
    mark = _mark(module)
    known = node.__dict__.get("_source")
    if known is not None and known[0] is mark and known[1] is module:
        found: Source = known[2]
        return found
    chain = of(module)
    code = chain.function.__code__
    first = code.co_varnames[:1] if code.co_argcount and chain.bound is not None else ()
    found = Source(node, chain, dict.fromkeys(first, chain.bound))
    node.__dict__["_source"] = (mark, module, found)
    return found


def standing_in(operation: Operation, function: FunctionType) -> Source:
    """The operations of a function that runs in place of what an operation calls.

    It does so in each pass that asks for one of them, from there on.
    """
    apart = Operation(operation._in, operation._named)  # what it really calls keeps its own
    found = Source(apart, follow(function, function.__qualname__), {})
    found._stands_in = True
    return found


def _mark(module: nn.Module) -> Any:
    """What tells whether a module's forward is still the one it was."""
    forward = module.__dict__.get("forward")
    while isinstance(forward, Stopping):
        forward = forward[2]
    return type(module).forward if forward is None else getattr(forward, "__func__", forward)


def _scope(source: Source) -> Scope:
    return Scope(source._chain.function, source._plan.assigned, source._known)


def _callee(operation: Operation) -> Any:
    """What an operation calls."""
    named, source = operation._named, operation._in
    if named.kind != CALL:
        raise SourceError(
            f"{operation._path} has no source: it is an assignment.",
            "only what is called has operations of its own.",
            "read its value: .output.",
        )
    try:
        with source._plan.lock:
            return value_of(named.node.func, _scope(source))
    except UnknownError as error:
        raise SourceError(
            f"what {operation._path} calls is not known before it runs.",
            f"{error}, and without a run only self, globals and names assigned once are known.",
            "read its .inputs and .output, or ask the function or module itself.",
        ) from None


def _node_of(operation: Operation, module: nn.Module) -> Any:
    for node in (*operation._outermost._nodes(), *operation._root._nodes()):
        if node._module is module:
            return node
    raise SourceError(
        f"{operation._path} calls a {type(module).__name__} that is no part of the model.",
        "a module has a source where it is in the tree of the wrapped model.",
        "make it an attribute of one of the model's modules.",
    )


def _unknown(source: Source, name: str) -> UnknownOperationError:
    names = list(source._plan.by_name)
    close = paths.nearest(name, names)
    shown = ", ".join((close or names)[:_SHOWN_MAX])
    among = f": {shown}{', …' if len(names) > len(shown.split()) else ''}" if names else ""
    return UnknownOperationError(
        f"{source._path} has no operation {name!r}.",
        f"{source._chain.function.__qualname__} has {len(names)} operations{among}.",
        f"did you mean {source._path}.{close[0]}?"
        if close
        else f"print({source._path}) shows them in the forward's text.",
    )


def _no_such_site(operation: Operation, name: str) -> UnknownOperationError:
    close = paths.nearest(name, (*_SITES, "skip", "next", "source"), 0.7)
    return UnknownOperationError(
        f"{operation._path} has nothing called {name!r}.",
        "an operation has output, input, inputs, skip, next and source.",
        f"did you mean {operation._path}.{close[0]}?"
        if close
        else f"read {operation._path}.output.",
    )
