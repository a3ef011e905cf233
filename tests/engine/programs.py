"""Random programs of reads and writes, as data: what a block does, run inside a trace and by hooks.

    program = (Read("a.held", "output", at=3), Edit("b", "input", "mul", at=5), Result(at=8))
    perform(program, Traced(model, tracer), facts)    # inside `with model.trace(x) as tracer:`
    by_hooks(net, x, program, facts)                  # the same values, by plain torch hooks

Each act says at which event of the run (see `little_models.observed`) it happens: the hooks go by
that alone, the trace by paths alone. The generator walks along the events, so what it makes is legal.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from little_models import INPUT, OUTPUT, WIDTH, Event
from torch import Tensor

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
        elif act.how == "iadd" and value is old:
            value += act.number
            self.sites.set(act.path, act.site, value)
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

    def result(self, act):
        return self.sites.result()

    def stop(self, act):
        self.sites.stop()


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


def _round(self, act):
    value = copy(self.sites.get(act.loop.path, act.loop.site))
    if act.loop.edit:
        new = self.sites.get(act.loop.path, act.loop.site)
        new[:] *= 0.5
    return value


Performer.round = _round


def by_hooks(net, x, program, facts):
    """What a program reads, and what the model returns, by plain torch hooks."""
    return Hooked(net, program, facts, x).run(x)


# Generating ---------------------------------------------------------------------------------------


class Walk:
    """Where a program being made stands among the events, and which lie ahead."""

    def __init__(self, facts):
        self.facts = facts
        self.events = list(facts.events)
        self.at = -1
        self.pending = set()
        self.kept = 0

    @property
    def here(self):
        """The event a program stands at, or none."""
        return self.events[self.at] if 0 <= self.at < len(self.events) else Event(-1, -1, 0)

    def next(self, module, side, *, moving=False):
        """The index of a site's event that a read would come to; None if there is none."""
        here = self.here
        if not moving and here.module == module and (side == INPUT or here.side == side):
            return self.at
        ahead = range(self.at + 1, len(self.events))
        return next((i for i in ahead if self.events[i][:2] == (module, side)), None)

    def sites(self):
        """All sites ahead: `(index, module, side)`, the nearest first."""
        found = [
            (at, module, side)
            for module in range(len(self.facts.paths))
            for side in (OUTPUT, INPUT)
            if self.at < END and (at := self.next(module, side)) is not None
        ]
        return sorted(found)

    def ahead(self, module, side):
        """The indices of a site's events that are still to come."""
        later = range(self.at + 1, len(self.events))
        return [i for i in later if self.events[i][:2] == (module, side)]

    def calls(self, module):
        """The indices of the calls of a module that can still be skipped."""
        here = [self.at] if self.here[:2] == (module, INPUT) else []
        return here + self.ahead(module, INPUT)

    def skippable(self):
        """Modules whose next call is still to come, and returns."""
        if self.at == END:
            return []
        modules = [
            m
            for m in self.facts.outputs
            if m not in self.pending and tensors(self.facts.outputs[m])
        ]
        found = [m for m in modules if (calls := self.calls(m)) and self.events[calls[0]].end]
        return [m for m in found if not self.hides_pending(m)]

    def hides_pending(self, module):
        """Whether a pending skip, or a module that fails, lies inside a module's next call."""
        start = self.calls(module)[0]
        inside = self.events[start + 1 : start + self.events[start].end]
        return any(e.module in self.pending and self.calls(e.module)[0] > start for e in inside)

    def skip(self, module):
        """Take what runs inside a module's next call out of the events."""
        start = self.calls(module)[0]
        taken = self.events[start].end - 1
        for i in range(start):
            event = self.events[i]
            if event.side == INPUT and i + event.end > start:
                self.events[i] = event._replace(end=event.end - taken)
        self.events[start : start + taken + 1] = [Event(module, INPUT, 1)]
        self.pending.add(module)

    def go(self, at):
        """Stand at an event."""
        self.pending -= (
            {e.module for e in self.events[self.at + 1 : at + 1] if e.side == INPUT}
            if at != END
            else self.pending
        )
        self.at = at


@st.composite
def programs(draw, facts, *, edits=IN_PLACE + REPLACING, rows=False, loops=True, longest=8):
    """A legal program for a model; for one invoke of several, only what keeps rows apart."""
    walk, acts = Walk(facts), []
    kinds = [_read, _read, _edit, _edit, _edit, _call]
    kinds += [_loop] * loops + [_skip] * (edits != IN_PLACE)
    for _ in range(draw(st.integers(0, longest))):
        act = draw(st.sampled_from(kinds))(draw, walk, edits, rows)
        if act is not None:
            acts.append(act)
    ending = draw(st.sampled_from(["result", "result", "nothing", "stop"]))
    if ending == "stop" and not rows:
        acts.append(Stop(walk.at))
    elif ending == "result":
        walk.go(END)
        acts.append(Result(END))
    return tuple(acts)


def _path(draw, walk, module):
    return draw(st.sampled_from(walk.facts.paths[module]))


def _chosen(draw, found):
    """One of the first few, so that a program does not run to the end at once."""
    return found[draw(st.integers(0, min(len(found) - 1, 6)))]


_numbers = st.sampled_from([0.0, 0.5, -1.0, 2.0])


def _site(draw, walk):
    found = walk.sites()
    if not found:
        return None
    at, module, side = _chosen(draw, found)
    walk.go(at)
    site = "output" if side == OUTPUT else draw(st.sampled_from(["input", "inputs"]))
    return at, _path(draw, walk, module), site


def _read(draw, walk, edits, rows):
    found = _site(draw, walk)
    if found is None:
        return None
    walk.kept += 1
    return Read(*found)


def _source(draw, walk):
    return draw(st.none() | st.integers(0, walk.kept - 1)) if walk.kept else None


def _edit(draw, walk, edits, rows):
    source = _source(draw, walk)
    found = _site(draw, walk)
    if found is None:
        return None
    late = found[2] != "output" and walk.here.side == OUTPUT
    if late and (rows or edits == REPLACING):
        return Read(*found)
    how = draw(st.sampled_from(("set", "mul") if late else edits))
    walk.kept += 1
    return Edit(*found, how, draw(st.integers(0, 2)), draw(_numbers), source)


def _skip(draw, walk, edits, rows):
    found = walk.skippable()
    if not found:
        return None
    module = draw(st.sampled_from(found))
    act = Skip(walk.at, _path(draw, walk, module), draw(_numbers), _source(draw, walk))
    walk.skip(module)
    return act


def _call(draw, walk, edits, rows):
    if not walk.facts.plain:
        return None
    module = draw(st.sampled_from(walk.facts.plain))
    act = Call(walk.at, _path(draw, walk, module), draw(_numbers), _source(draw, walk))
    walk.kept += 1
    return act


def _loop(draw, walk, edits, rows):
    """A loop over the calls of one module, from where the program stands."""
    calls = [e.module for e in walk.events if e.side == INPUT]
    often = sorted({m for m in calls if calls.count(m) > 1})
    if walk.at == END or not often:
        return None
    module = draw(st.sampled_from(often))
    outputs = isinstance(walk.facts.outputs.get(module), Tensor)
    if not outputs or walk.here.module == module:
        return None
    site = draw(st.sampled_from(["output", "input"]))
    ahead = walk.ahead(module, OUTPUT if site == "output" else INPUT)
    if not ahead:
        return None
    which = slice(
        draw(st.integers(0, len(ahead) - 1)),
        draw(st.none() | st.integers(1, len(ahead) + 1)),
        draw(st.sampled_from([None, 1, 2])),
    )
    if which.stop is not None and which.stop <= which.start:
        return None
    at = tuple(ahead[which])
    path, edit = _path(draw, walk, module), not rows and draw(st.booleans())
    ends = which.stop is None or len(range(which.start, which.stop, which.step or 1)) > len(at)
    walk.go(END if ends else at[-1])
    return Loop(at, path, site, which, edit)
