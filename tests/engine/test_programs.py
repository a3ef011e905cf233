"""Any legal program of reads and writes, on any little model, reads what plain hooks read.

An illegal one gets its error at its own line, and leaves nothing behind.
"""

import contextlib
import os
import tempfile
from dataclasses import dataclass

import pytest
import torch
from drawn_programs import broken, programs
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from little_models import WIDTH, S, Spec, build, observed, set_variant, specs
from programs import (
    END,
    IN_PLACE,
    REPLACING,
    Edit,
    Held,
    Loop,
    Read,
    Result,
    Skip,
    Stopped,
    Traced,
    Wrong,
    by_hooks,
    copy,
    perform,
    same,
)  # fmt: skip
from untouched import state

from insitu import InsituError, NNsight

set_hypothesis_home_dir(os.path.join(tempfile.gettempdir(), "hypothesis"))  # not into the tree
FAST = settings(
    max_examples=80, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink],
)  # fmt: skip
LONG = settings(FAST, max_examples=3000)


def inputs(number=0, rows=1):
    return torch.rand(rows, WIDTH, generator=torch.Generator().manual_seed(number)) - 0.5


@dataclass(frozen=True)
class Case:
    """A model, the variant its runs take, and a program."""

    spec: Spec
    variant: int
    program: tuple

    def __repr__(self):
        return f"Case({self.spec}, {self.variant}, {self.program})"


@st.composite
def cases(draw, **limits):
    spec, variant = draw(specs), draw(st.integers(0, 1))
    return Case(spec, variant, draw(programs(observed(spec, variant), **limits)))


def a_net(case):
    net = build(case.spec)
    set_variant(net, case.variant)
    return net


def a_used_model(case):
    """A wrapper that knows the order of the other variant."""
    net = build(case.spec)
    set_variant(net, 0)
    model = NNsight(net)
    with model.trace(inputs(9)):
        pass
    set_variant(net, case.variant)
    return net, model


def facts(case, rows=1):
    return observed(case.spec, case.variant, rows)


def expected(case, x):
    return by_hooks(a_net(case), x.clone(), case.program, facts(case, len(x)))


def agree(log, oracle, tolerance=0.0):
    for (act, value), (_, right) in zip(log, oracle, strict=True):
        assert same(value, right, tolerance), f"{act}:\n{value}\nis not\n{right}"


def traced(model, case, x, between=lambda: None):
    """The program's log, run in a trace."""
    sites, x = None, x.clone()
    with model.trace(x) as tracer:
        sites = Traced(model, tracer)
        perform(case.program, sites, facts(case), x, between)
    return sites.log


def in_a_first_pass(case):
    net, x = a_net(case), inputs()
    before = state(net)
    agree(traced(NNsight(net), case, x), expected(case, x))
    assert state(net) == before


def in_later_passes(case):
    net, model = a_used_model(case)
    before = state(net)
    for number in range(2):
        agree(traced(model, case, inputs(number)), expected(case, inputs(number)))
        assert state(net) == before


def inside_a_trace_of_the_same_module(case):
    """And of another model, with passes that run between any two statements."""
    net, model = a_used_model(case)
    outer, other, x, seen = NNsight(net), NNsight(build(case.spec)), inputs(), []
    before = state(net, other._module)

    def trace_another():
        with other.trace(inputs(2)):
            seen.append(other.output)
        seen.append(net(inputs(3)))

    with outer.trace(inputs(1)) as around, other.trace(inputs(2)) as beside:
        outer.input[:] *= 1
        agree(traced(model, case, x, trace_another), expected(case, x))
        results = around.result, beside.result
    assert same(results, (net(inputs(1)), other._module(inputs(2))))
    assert same(seen, [other._module(inputs(2)), net(inputs(3))] * (len(seen) // 2))
    assert state(net, other._module) == before


def held_open(case):
    net, model = a_used_model(case) if len(case.program) % 2 else (n := a_net(case), NNsight(n))
    x = inputs()
    before = state(net)
    run = model.open(x.clone())
    sites = Held(model, run)
    with contextlib.suppress(Stopped):
        perform(case.program, sites, facts(case), x)
        if run.where != "finished":
            assert same(copy(run.finish()), expected_end(case, x))
    agree(sites.log, expected(case, x))
    assert run.where in ("finished", "closed")
    assert state(net) == before


def expected_end(case, x):
    """What the model returns at the end of a program."""
    program = (*case.program, Result(END))
    return expected(Case(case.spec, case.variant, program), x)[-1][1]


def run(way, cases, settings):
    """Run a way with many cases."""

    @settings
    @given(cases)
    def with_cases(case):
        way(case)

    with_cases()


WAYS = {
    in_a_first_pass: cases(),
    in_later_passes: cases(),
    inside_a_trace_of_the_same_module: cases(),
    held_open: cases(loops=False),
}
ways = pytest.mark.parametrize("way", WAYS)


@ways
def test_a_program_reads_what_hooks_read(way):
    run(way, WAYS[way], FAST)


@ways
@pytest.mark.slow
def test_thousands_of_programs_read_what_hooks_read(way):
    run(way, WAYS[way], LONG)


# Invokes ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cases:
    """Programs for the invokes of one trace."""

    spec: Spec
    variant: int
    rows: tuple[int, ...]
    programs: tuple

    def __repr__(self):
        return f"Cases({self.spec}, {self.variant}, {self.rows}, {self.programs})"


@st.composite
def several(draw):
    """Two or three, which edit in place, or replace: not both, as a copy has no aliases."""
    edits, variant = draw(st.sampled_from([IN_PLACE, REPLACING])), draw(st.integers(0, 1))
    spec = draw(specs if edits == IN_PLACE else specs.filter(lambda spec: "relu" not in repr(spec)))
    rows = draw(st.sampled_from([(1, 1), (1, 2), (2, 1), (1, 2, 1), (1, 1, 1)]))
    made = [
        draw(programs(observed(spec, variant, n), edits=edits, rows=True, longest=5)) for n in rows
    ]
    return Cases(spec, variant, rows, tuple(made))


def in_invokes(several):
    alone = Case(several.spec, several.variant, ())
    read_in_invokes(several, net := a_net(alone), NNsight(net))


def in_invokes_later(several):
    read_in_invokes(several, *a_used_model(Case(several.spec, several.variant, ())))


def read_in_invokes(several, net, model):
    alone = [Case(several.spec, several.variant, program) for program in several.programs]
    xs = [inputs(i, n) for i, n in enumerate(several.rows)]
    before, sites = state(net), []
    with model.trace() as tracer:
        for case, x in zip(alone, xs, strict=True):
            sites.append(Traced(model, tracer))
            site = sites[-1]
            with tracer.invoke(x.clone()):
                perform(case.program, site, facts(case, len(x)), x)
    for site, case, x in zip(sites, alone, xs, strict=True):
        agree(site.log, expected(case, x), 1e-5)
    assert state(net) == before


invokes = pytest.mark.parametrize("way", [in_invokes, in_invokes_later])


@invokes
def test_invokes_read_what_single_runs_read(way):
    run(way, several(), FAST)


@invokes
@pytest.mark.slow
def test_thousands_of_invokes_read_what_single_runs_read(way):
    run(way, several(), LONG)


# What is wrong ------------------------------------------------------------------------------------


@st.composite
def broken_cases(draw, first=True):
    spec, variant = draw(specs), draw(st.integers(0, 1))
    learned = frozenset() if first else frozenset(e.module for e in observed(spec, 0).events)
    return Case(spec, variant, draw(broken(observed(spec, variant), learned)))


def without_its_wrong(case):
    """The program with a plain read where the wrong act stands, or with nothing."""
    acts = [a if not isinstance(a, Wrong) else Read(a.at, a.path, a.site) for a in case.program]
    return Case(case.spec, case.variant, tuple(act for act in acts if act.at is not None))


def refused(model, case, x):
    """The log of a program whose wrong statement got its error, there."""
    wrong = next(act for act in case.program if isinstance(act, Wrong))
    sites, error = [], None
    try:
        with model.trace(x.clone()) as tracer:
            sites.append(Traced(model, tracer))
            perform(case.program, sites[0], facts(case), x)
    except InsituError as raised:
        error = raised
    log = sites[0].log
    if wrong.caught:
        assert error is None
        assert next(value for act, value in log if act is wrong) is True
    else:
        assert type(error).__name__ in wrong.expected, f"{wrong}: {error!r}"
        at_the_end = wrong.kind == "skip" and len(log) == len(case.program)
        assert at_the_end or len(log) == case.program.index(wrong), "it came elsewhere"
        assert all(line.strip() for line in str(error).split("\n")[:3])
    return [entry for entry in log if entry[0] is not wrong]


def is_refused(net, model, case):
    legal, x, before = without_its_wrong(case), inputs(), state(net)
    right = expected(legal, x)
    log = refused(model, case, x)
    own = [entry for entry in right if any(entry[0] is act for act in case.program)]
    agree(log, own[: len(log)])
    assert state(net) == before
    for _ in range(2):  # the next run is right
        agree(traced(model, legal, x), right)
    assert state(net) == before


def refused_in_a_first_pass(case):
    net = a_net(case)
    is_refused(net, NNsight(net), case)


def refused_in_a_later_pass(case):
    is_refused(*a_used_model(case), case)


WRONG_WAYS = {
    refused_in_a_first_pass: broken_cases(first=True),
    refused_in_a_later_pass: broken_cases(first=False),
}
wrong_ways = pytest.mark.parametrize("way", WRONG_WAYS)


@wrong_ways
def test_a_wrong_statement_gets_its_error_there_and_leaves_nothing(way):
    run(way, WRONG_WAYS[way], FAST)


@wrong_ways
@pytest.mark.slow
def test_thousands_of_wrong_statements_get_their_errors(way):
    run(way, WRONG_WAYS[way], LONG)


# What such programs have found --------------------------------------------------------------------


def one(text, variant, *program):
    """A case, as a failure prints it."""
    return Case(text, variant, program)


def of_rows(spec, variant, *programs, rows=(1, 1)):
    return Cases(spec, variant, rows, programs)


RESULT = Result(END)
FOUND = {
    "a later call of a module that has run is skipped": one(
        S("nested", S("linear")), 0, Read(2, "a", "output"), Skip(2, "a", 0.0), RESULT
    ),
    "a loop further out comes back to a module": one(
        S("recurrent", S("residual", S("linear"))), 1,
        Read(5, "a.inner", "output"), Read(10, "a.inner.a", "output"), RESULT,
    ),
    "the second call of a module is under way": one(
        S("nested", S("residual", S("linear"))), 0,
        Read(4, "a", "output"), Read(7, "a.a", "output"), Read(8, "a", "output"),
    ),
    "a loop goes on from a first call to the next": one(
        S("nested", S("linear")), 0, Loop((2, 4), "a", "output", slice(0, None), False), RESULT
    ),
    "a module is skipped inside one that has been called again": one(
        S("nested", S("residual", S("linear"))), 0,
        Loop((1, 5), "a", "input", slice(0, 2), False), Skip(5, "a.a", 0.0), RESULT,
    ),
    "another parent calls a shared module": one(
        S("sharing", S("linear")), 0, Read(4, "a", "output"), Read(7, "a.held", "output"), RESULT
    ),
    "the other parent of a shared module is read from inside": one(
        S("sharing", S("linear")), 0,
        Read(4, "a", "output"), Read(7, "a.held", "output"), Read(8, "b", "output"),
    ),
    "a shared module that no earlier pass has called": one(
        S("flagged", S("unpacked"), S("sharing", S("norm"))), 1,
        Read(5, "b.a", "output"), Read(7, "b.a.held", "input"), Read(9, "b.b", "output"),
    ),
    "a loop begins below the call that was the only one": one(
        S("recurrent", S("unpacked")), 1,
        Read(7, "a.inner", "output"),
        Loop((13, 21), "a.inner.a.inner", "output", slice(0, None), False), RESULT,
    ),
    "a loop that begins with a later call": one(
        S("outside", S("linear"), S("linear")), 0,
        Loop((8,), "a.held", "output", slice(1, None), False), RESULT,
    ),
    "a module runs in another order than it was learned in": one(
        S("swapped", S("flagged", S("tanh"), S("tanh")), S("nested", S("linear"))), 1,
        Read(3, "b.a", "output"), Read(9, "a.b", "output"), Read(10, "a", "output"),
    ),
    "a list of modules is walked a second time": one(
        S("twice", S("walked", S("unpacked"), S("walked", S("tanh"), S("norm")))), 1,
        Loop((21,), "a.blocks.0", "output", slice(1, 2), True), Read(22, "a.blocks.1", "input"),
    ),
    "a module is called where an error is caught": one(
        S("twice", S("guarded", S("norm"), S("norm"))), 0,
        Read(5, "a.b", "inputs"), Read(10, "a.a.inner", "inputs"), Read(12, "a.b", "input"),
    ),
    "a module is called by a local name": one(
        S("by local", S("gating")), 0,
        Read(3, "a.a.inner", "input"), Read(9, "a.b", "output"), Read(14, "a.a.inner", "output"),
    ),
    "the input that was written is readable at the output of a hooked module": one(
        S("residual", S("linear"), hooked=True), 0,
        Edit(0, "", "inputs", "scale", 0, 0.0), Read(3, "", "output"), Read(3, "", "input"),
    ),
    "rows skip the next call of a module, not the one under way": of_rows(
        S("twice", S("unnamed")), 0,
        (RESULT,), (Read(4, "a.a.inner", "output"), Skip(4, "a", 2.0), RESULT),
    ),
    "what rows skip inside a call that they skip is in the next one": of_rows(
        S("twice", S("twice", S("tanh"))), 0,
        (RESULT,), (Skip(-1, "a", 0.5), Skip(-1, "a.a", 0.0), RESULT),
    ),
    "all rows skip a module, and a part of what it gives has none": of_rows(
        S("outside", S("unpacked"), S("tanh")), 0,
        *[(Skip(-1, "a.held.a", 0.5), RESULT)] * 2, rows=(1, 2),
    ),
    "an edit in place is seen by whoever else holds the tensor": of_rows(
        S("residual", S("unpacked")), 0,
        *[(Edit(1, "a", "inputs", "iadd", 0, 2.0), Read(7, "", "output"))] * 2,
    ),
    "rows read the other parent of a shared module": of_rows(
        S("sharing", S("flagged", S("linear"), S("linear"))), 1,
        (Read(2, "b.held", "inputs"), Read(6, "a", "output"), Read(6, "a", "input")), (),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_what_random_programs_have_found(name):
    case = FOUND[name]
    for way in (in_invokes, in_invokes_later) if isinstance(case, Cases) else WAYS:
        if way is not held_open or not any(isinstance(act, Loop) for act in case.program):
            way(case)
