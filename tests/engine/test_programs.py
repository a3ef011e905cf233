"""Any legal program of reads and writes, on any little model, reads what plain hooks read.

An illegal one gets its error at its own line, and leaves nothing behind.
"""

import contextlib
from dataclasses import dataclass

import pytest
import torch
from drawn_programs import broken, programs
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from little_models import WIDTH, Spec, build, observed, set_variant, specs
from programs import (
    END,
    IN_PLACE,
    REPLACING,
    Held,
    Read,
    Result,
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

FAST = settings(
    max_examples=60, deadline=None, derandomize=True, database=None,
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


WAYS = {
    in_a_first_pass: cases(),
    in_later_passes: cases(),
    inside_a_trace_of_the_same_module: cases(),
    held_open: cases(loops=False),
}
ways = pytest.mark.parametrize("way", WAYS)


@ways
def test_a_program_reads_what_hooks_read(way):
    FAST(given(WAYS[way])(way))()


@ways
@pytest.mark.slow
def test_thousands_of_programs_read_what_hooks_read(way):
    LONG(given(WAYS[way])(way))()


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
    FAST(given(several())(way))()


@invokes
@pytest.mark.slow
def test_thousands_of_invokes_read_what_single_runs_read(way):
    LONG(given(several())(way))()


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
    FAST(given(WRONG_WAYS[way])(way))()


@wrong_ways
@pytest.mark.slow
def test_thousands_of_wrong_statements_get_their_errors(way):
    LONG(given(WRONG_WAYS[way])(way))()
