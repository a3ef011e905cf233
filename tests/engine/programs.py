"""Random programs of reads and writes, as data: what a block does, run inside a trace and by hooks.

    program = (Read("a.held", "output", at=3), Edit("b", "input", "mul", at=5), Result(at=8))
    perform(program, Traced(model, tracer), facts)    # inside `with model.trace(x) as tracer:`
    by_hooks(net, x, program, facts)                  # the same values, by plain torch hooks

Each act says at which event of the run (see `little_models.observed`) it happens: the hooks go by
that alone, the trace by paths alone.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from little_models import WIDTH
from torch import Tensor

from insitu import InsituError

END = 10**6
"""Where a program stands when the model has returned."""
IN_PLACE, REPLACING = ("set", "mul", "iadd"), ("scale", "new")


@dataclass(frozen=True)
class Act:
    """One statement of a block. Abstract."""

    at: Any

    def __repr__(self):
        shown = ", ".join(repr(getattr(self, f.name)) for f in dataclasses.fields(self))
        return f"{type(self).__name__}({shown})"


@dataclass(frozen=True, repr=False)
class Read(Act):
    path: str
    site: str


@dataclass(frozen=True, repr=False)
class Edit(Read):
    """Changes one tensor of a site; `source` is an earlier value, or the number alone."""

    how: str
    part: int
    number: float
    source: int | None = None


@dataclass(frozen=True, repr=False)
class Loop(Read):
    """`for step in tracer.iter[which]:` over the calls of one module; `at` is a tuple."""

    which: slice
    edit: bool


@dataclass(frozen=True, repr=False)
class Skip(Act):
    path: str
    number: float
    source: int | None = None


@dataclass(frozen=True, repr=False)
class Call(Act):
    """Calls a module inside the block."""

    path: str
    number: float
    source: int | None = None


@dataclass(frozen=True, repr=False)
class Result(Act):
    """`tracer.result`."""


@dataclass(frozen=True, repr=False)
class Stop(Act):
    """`tracer.stop()`."""


@dataclass(frozen=True, repr=False)
class Wrong(Read):
    """Something illegal; `caught` by the block, which goes on, or not."""

    kind: str
    expected: tuple[str, ...]
    caught: bool


# Values -------------------------------------------------------------------------------------------


def copy(value):
    """A value as it is now."""
    return mapped(value, lambda t: t.detach().clone())


def mapped(value, change):
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: mapped(part, change) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)([mapped(part, change) for part in value])
    return value


def tensors(value):
    """The tensors with rows in a value."""
    found = []
    mapped(value, lambda t: found.append(t) if t.dim() == 2 else None)
    return found


def with_new(value, old, new):
    """A value with one of its tensors replaced."""
    return mapped(value, lambda t: new if t is old else t)


def same(one, other, tolerance=0.0):
    """Whether two logs, or parts of them, are equal."""
    if isinstance(one, Tensor):
        close = {"rtol": tolerance, "atol": tolerance, "equal_nan": True}
        return (
            isinstance(other, Tensor)
            and one.shape == other.shape
            and one.dtype == other.dtype
            and torch.allclose(one, other, **close)
        )
    if isinstance(one, dict):
        return isinstance(other, dict) and same([*one.items()], [*other.items()], tolerance)
    if isinstance(one, (tuple, list)):
        return (
            isinstance(other, type(one))
            and len(one) == len(other)
            and all(same(a, b, tolerance) for a, b in zip(one, other, strict=True))
        )
    return one == other


# Performing a program -----------------------------------------------------------------------------


class Performer:
    """Does acts, one by one, on the sites it is given, and logs what it meets."""

    def __init__(self, sites, facts, like):
        self.sites, self.facts, self.like = sites, facts, like
        self.log, self.kept = [], []

    def do(self, act):
        value = getattr(self, type(act).__name__.lower())(act)
        self.log.append((act, copy(value)))

    def read(self, act):
        value = self.sites.get(act.path, act.site)
        self.keep(value)
        return value

    def keep(self, value):
        self.kept += [t.detach().clone() for t in tensors(value)[:1]]

    def edit(self, act):
        value = self.sites.get(act.path, act.site)
        found = tensors(value)
        if not found:
            return value
        old = found[act.part % len(found)]
        if act.how == "set":
            old[:, act.part % WIDTH] = act.number
        elif act.how == "mul":
            old.mul_(act.number)
        elif act.how == "iadd":
            old += act.number
            self.sites.set(act.path, act.site, with_new(value, old, old))
        else:
            new = old * act.number if act.how == "scale" else self.new(act)
            self.sites.set(act.path, act.site, with_new(value, old, new))
        value = self.sites.get(act.path, act.site)
        self.keep(value)
        return value

    def new(self, act):
        """A tensor: an earlier value times a number, or the number alone."""
        if act.source is not None and self.kept:
            return self.kept[act.source % len(self.kept)] * act.number
        return torch.full_like(self.like, act.number)

    def skip(self, act):
        module = next(i for i, paths in enumerate(self.facts.paths) if act.path in paths)
        new = self.new(act)
        self.sites.skip(
            act.path, mapped(self.facts.outputs[module], lambda t: new * 1 if t.dim() == 2 else t)
        )

    def call(self, act):
        value = self.sites.call(act.path, self.new(act))
        self.keep(value)
        return value

    def loop(self, act):
        return [copy(value) for value in self.sites.loop(act)]

    def round(self, act):
        value = self.sites.get(act.loop.path, act.loop.site)
        before = copy(value)
        if act.loop.edit:
            value[:] *= 0.5
        return before

    def result(self, act):
        return self.sites.result()

    def stop(self, act):
        self.sites.stop()

    def wrong(self, act):
        if act.at is not None:
            self.read(act)
        if not act.caught:
            WRONG[act.kind](self, act)
        try:
            WRONG[act.kind](self, act)
        except InsituError as error:
            return type(error).__name__ in act.expected
        return False


class Traced:
    """The sites of a wrapped model, while one of its passes runs."""

    def __init__(self, model, tracer):
        self.model, self.tracer = model, tracer

    def at(self, path):
        node = self.model
        for name in filter(None, path.split(".")):
            node = node[int(name)] if name.isdigit() else getattr(node, name)
        return node

    def get(self, path, site):
        return getattr(self.at(path), site)

    def set(self, path, site, value):
        setattr(self.at(path), site, value)

    def skip(self, path, value):
        self.at(path).skip(value)

    def call(self, path, x):
        return self.at(path)(x)

    def loop(self, act):
        seen, node = [], self.at(act.path)
        for _step in self.tracer.iter[act.which]:
            seen.append(copy(getattr(node, act.site)))
            if act.edit:
                getattr(node, act.site)[:] *= 0.5
        return seen

    def result(self):
        return self.tracer.result

    def stop(self):
        self.tracer.stop()


class Stopped(Exception):
    """Leaves a block that no `with` swallows the end of."""


class Held(Traced):
    """The sites of a wrapped model, while a pass is held open."""

    def get(self, path, site):
        if len(path) % 2:
            self.tracer.until(f"{path or 'model'}.{site}")
        return super().get(path, site)

    def result(self):
        return self.tracer.finish()

    def stop(self):
        self.tracer.close()
        raise Stopped


def perform(program, sites, facts, like, between=lambda: None):
    """Run a program where it stands and give its log, also when it stops half-way."""
    performer = Performer(sites, facts, like)
    try:
        for act in program:
            performer.do(act)
            between()
    finally:
        sites.log = performer.log
    return performer.log


# What is wrong ------------------------------------------------------------------------------------


def _write(performer, act, wrong):
    """Write something that does not fit in the place of a site's tensor."""
    value = performer.sites.get(act.path, act.site)
    old = tensors(value)[0]
    performer.sites.set(act.path, act.site, with_new(value, old, wrong(old)))


WRONG = {
    "read": lambda it, act: it.sites.get(act.path, act.site),
    "write": lambda it, act: it.sites.set(act.path, act.site, it.like),
    "late": lambda it, act: it.sites.set(act.path, act.site, it.sites.get(act.path, act.site)),
    "skip": lambda it, act: it.sites.skip(act.path, it.like),
    "unknown": lambda it, act: it.sites.get(f"{act.path}.nonsense".lstrip("."), act.site),
    "misspelt": lambda it, act: setattr(it.sites.at(act.path), "outptu", it.like),
    "shape": lambda it, act: _write(it, act, lambda old: old[:, 1:]),
    "dtype": lambda it, act: _write(it, act, lambda old: old.double()),
    "kind": lambda it, act: _write(it, act, lambda old: "text"),
    "none": lambda it, act: it.sites.set(act.path, act.site, None),
    "step": lambda it, act: it.sites.tracer.iter[-1],
    "no step": lambda it, act: it.sites.tracer.next(),
}


# The oracle ---------------------------------------------------------------------------------------


class Hooked:
    """The sites of a plain module while it runs, by hooks; knows nothing of Insitu."""

    def __init__(self, net, program, facts, like):
        self.net, self.program = net, [part for act in program for part in unrolled(act)]
        self.performer = Performer(self, facts, like)
        self.index, self.busy, self.skips = -1, False, {}
        self.module = self.args = self.kwargs = self.value = self.returned = None

    def run(self, x):
        handles = []
        for module in self.net.modules():
            handles.append(module.register_forward_pre_hook(self.enter, with_kwargs=True))
            handles.append(module.register_forward_hook(self.leave, with_kwargs=True))
            module.forward = self.forward_of(module)
        try:
            self.go_on()
            self.returned = self.net(x)
            self.index = END
            self.go_on()
        except Stopped:
            pass
        finally:
            for handle in handles:
                handle.remove()
            for module in self.net.modules():
                del module.__dict__["forward"]
        return rolled(self.performer.log)

    def forward_of(self, module):
        own = module.forward

        def forward(*args, **kwargs):
            if module in self.skips and not self.busy:
                return self.skips.pop(module)
            return own(*args, **kwargs)

        return forward

    def enter(self, module, args, kwargs):
        if self.busy:
            return None
        self.index += 1
        self.module, self.args, self.kwargs = module, args, kwargs
        self.go_on()
        return self.args, self.kwargs

    def leave(self, module, args, kwargs, output):
        if self.busy:
            return None
        self.index += 1
        self.module, self.args, self.kwargs, self.value = module, args, kwargs, output
        self.go_on()
        return self.value

    def go_on(self):
        """Do what is due at this event."""
        self.busy = True
        try:
            while self.program and self.program[0].at == self.index:
                self.performer.do(self.program.pop(0))
        finally:
            self.busy = False

    def at(self, path):
        return self.net.get_submodule(path)

    def get(self, path, site):
        assert self.module is self.at(path)
        if site == "output":
            return self.value
        if site == "inputs":
            return self.args, self.kwargs
        return self.args[0] if self.args else next(iter(self.kwargs.values()))

    def set(self, path, site, value):
        assert self.module is self.at(path)
        if site == "output":
            self.value = value
        elif site == "inputs":
            self.args, self.kwargs = value
        elif self.args:
            self.args = (value, *self.args[1:])
        else:
            self.kwargs = {**self.kwargs, next(iter(self.kwargs)): value}

    def skip(self, path, value):
        self.skips[self.at(path)] = value

    def call(self, path, x):
        return self.at(path)(x)

    def result(self):
        return self.returned

    def stop(self):
        raise Stopped


@dataclass(frozen=True, repr=False)
class Round(Act):
    """One step of a loop, for the oracle."""

    loop: Loop


def unrolled(act):
    """A loop as the single rounds it comes to."""
    return [Round(at, act) for at in act.at] if isinstance(act, Loop) else [act]


def rolled(log):
    """A log in which the rounds of a loop are one entry again."""
    found = []
    for act, value in log:
        if not isinstance(act, Round):
            found.append((act, value))
        elif found and found[-1][0] is act.loop:
            found[-1][1].append(value)
        else:
            found.append((act.loop, [value]))
    return found


def by_hooks(net, x, program, facts):
    """What a program reads, and what the model returns, by plain torch hooks."""
    return Hooked(net, program, facts, x).run(x)
