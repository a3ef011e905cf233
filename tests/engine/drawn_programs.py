"""Random programs, made by walking along the events of a model's plain run: so they are legal.

    programs(observed(spec, variant))       # a strategy of programs, see programs.py
    broken(observed(spec, 1), learned)      # … with one statement that is not

Where a program stands, and what lies ahead, is known here from hooks alone, not from Insitu.
"""

from hypothesis import strategies as st
from little_models import INPUT, OUTPUT, Event
from programs import (
    END,
    IN_PLACE,
    REPLACING,
    Call,
    Edit,
    Loop,
    Read,
    Result,
    Skip,
    Stop,
    Wrong,
    tensors,
)  # fmt: skip
from torch import Tensor


class Walk:
    """Where a program being made stands among the events, and which lie ahead."""

    def __init__(self, facts):
        self.facts = facts
        self.events = list(facts.events)
        self.at = -1
        self.pending = set()
        self.skipped = False
        self.kept = 0
        self.met = set()
        """What the program has read: the steps of a loop over it would count on from there."""

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
        self.skipped = True

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
    walk = Walk(facts)
    acts = _acts(draw, walk, longest, edits=edits, rows=rows, loops=loops)
    ending = draw(st.sampled_from(["result", "result", "nothing", "stop"]))
    if ending == "stop" and not rows:
        acts.append(Stop(walk.at))
    elif ending == "result":
        walk.go(END)
        acts.append(Result(END))
    return tuple(acts)


def _acts(draw, walk, longest, *, edits=IN_PLACE + REPLACING, rows=False, loops=True):
    kinds = [_read, _read, _edit, _edit, _edit, _call]
    kinds += [_loop] * loops + [_skip] * (edits != IN_PLACE)
    made = [
        draw(st.sampled_from(kinds))(draw, walk, edits, rows)
        for _ in range(draw(st.integers(0, longest)))
    ]
    return [act for act in made if act is not None]


@st.composite
def broken(draw, facts, learned, *, longest=5):
    """A program with one statement that is wrong, and more after it if the block catches that.

    Args:
        facts: of the run it is for.
        learned: what an earlier run has called; empty for a first pass.
    """
    walk = Walk(facts)
    acts = _acts(draw, walk, longest)
    wrong = draw(st.sampled_from([_passed, _never, _late, _unfitting, _unknown, _no_such_step]))
    act = wrong(draw, walk, learned) or _unknown(draw, walk, learned)
    more = _acts(draw, walk, 3) if act.caught else []
    return (*acts, act, *more)


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
    walk.met.add(module)
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
    often = sorted({m for m in calls if calls.count(m) > 1} - walk.met)
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
    walk.met.add(module)
    return Loop(at, path, site, which, edit)


# What is wrong ------------------------------------------------------------------------------------


def _never_ran(walk, learned, module):
    """Also what a pass says that cannot know better: it has not seen this module run."""
    return ("NeverRanError",) if walk.skipped or (learned and module not in learned) else ()


def _asking(draw):
    return draw(
        st.sampled_from(
            [("read", "output"), ("read", "input"), ("write", "output"), ("write", "inputs")]
        )
    )


def _passed(draw, walk, learned):
    """A site of a module that has run and does not run again."""
    kind, site = _asking(draw)
    side = OUTPUT if site == "output" else INPUT
    ran = {e.module for e in walk.facts.events if e.side == OUTPUT}
    found = [m for m in ran if walk.at == END or walk.next(m, side) is None]
    if not found:
        return None
    module = draw(st.sampled_from(sorted(found)))
    expected = ("OutOfOrderError", *_never_ran(walk, learned, module))
    return Wrong(None, _path(draw, walk, module), site, kind, expected, False)


def _never(draw, walk, learned):
    """A module that this run does not call; if an earlier run has, it was perhaps missed."""
    kind, site = _asking(draw)
    ran = {e.module for e in walk.facts.events}
    found = [m for m in range(len(walk.facts.paths)) if m not in ran]
    if not found:
        return None
    module = draw(st.sampled_from(found))
    known = ("OutOfOrderError",) if module in learned or walk.skipped else ()
    return Wrong(None, _path(draw, walk, module), site, kind, ("NeverRanError", *known), False)


def _late(draw, walk, learned):
    """The input of a module that has run, or a skip that comes too late for any call."""
    if walk.here.side == OUTPUT and draw(st.booleans()):
        path = _path(draw, walk, walk.here.module)
        site = draw(st.sampled_from(["input", "inputs"]))
        return Wrong(None, path, site, "late", ("OutOfOrderError",), True)
    ran = sorted(
        {e.module for e in walk.facts.events if e.side == OUTPUT and e.module in walk.facts.plain}
    )
    found = [m for m in ran if walk.at == END or not walk.calls(m)]
    if not found:
        return None
    path = _path(draw, walk, draw(st.sampled_from(found)))
    return Wrong(None, path, "", "skip", ("OutOfOrderError", "NeverRanError"), False)


def _unfitting(draw, walk, learned):
    """A value that does not fit; the pass stands at that site then."""
    found = _site(draw, walk)
    if found is None or walk.here.module not in walk.facts.outputs:
        return None
    at, path, site = found
    if not tensors(walk.facts.outputs[walk.here.module]) or (
        site != "output" and walk.here.side == OUTPUT
    ):
        return None
    kind = draw(st.sampled_from(["shape", "dtype", "kind", "none"]))
    return Wrong(at, path, site, kind, ("WriteError",), draw(st.booleans()))


def _unknown(draw, walk, learned):
    path = _path(draw, walk, draw(st.integers(0, len(walk.facts.paths) - 1)))
    kind = draw(st.sampled_from(["unknown", "misspelt"]))
    return Wrong(None, path, "output", kind, ("UnknownModuleError",), draw(st.booleans()))


def _no_such_step(draw, walk, learned):
    if walk.at == END:
        return Wrong(None, "", "", "no step", ("StepError",), draw(st.booleans()))
    return Wrong(None, "", "", "step", ("StepError",), draw(st.booleans()))
