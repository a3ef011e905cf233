"""Any legal program of reads and writes, on any little model, reads what plain hooks read.

An illegal one gets its error at its own line, and leaves nothing behind.
"""

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from little_models import WIDTH, build, observed, set_variant, specs
from programs import Traced, by_hooks, copy, perform, programs, same
from untouched import state

from insitu import NNsight
from insitu.engine.capture.bodies import find_body

FAST = settings(
    max_examples=60, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink],
)  # fmt: skip
LONG = settings(FAST, max_examples=3000)


def inputs(number=0, rows=1):
    return torch.rand(rows, WIDTH, generator=torch.Generator().manual_seed(number)) - 0.5


class Case:
    """A model, the variant its runs take, and a program."""

    def __init__(self, spec, variant, program):
        self.spec, self.variant, self.program = spec, variant, program

    def __repr__(self):
        return f"Case({self.spec}, {self.variant}, {self.program})"


@st.composite
def cases(draw):
    spec, variant = draw(specs), draw(st.integers(0, 1))
    return Case(spec, variant, draw(programs(observed(spec, variant))))


def a_net(case):
    net = build(case.spec)
    set_variant(net, case.variant)
    return net


def expected(case, x=None):
    facts = observed(case.spec, case.variant)
    return by_hooks(a_net(case), inputs() if x is None else x, case.program, facts)


def traced(model, case, x=None):
    """The program's log, run in a trace."""
    x, sites = inputs() if x is None else x, None
    with model.trace(x) as tracer:
        sites = Traced(model, tracer)
        perform(case.program, sites, observed(case.spec, case.variant), x)
    return sites.log


def agree(log, oracle, tolerance=0.0):
    for (act, value), (_, right) in zip(log, oracle, strict=True):
        assert same(value, right, tolerance), f"{act}:\n{value}\nis not\n{right}"


def in_a_first_pass(case):
    net = a_net(case)
    before = state(net)
    agree(traced(NNsight(net), case), expected(case))
    assert state(net) == before


def in_a_later_pass(case):
    net = build(case.spec)
    model = NNsight(net)
    with model.trace(inputs()):
        pass
    set_variant(net, case.variant)
    before = state(net)
    for _ in range(2):
        agree(traced(model, case), expected(case))
        assert state(net) == before


ways = pytest.mark.parametrize("way", [in_a_first_pass, in_a_later_pass])


@ways
def test_a_program_reads_what_hooks_read(way):
    FAST(given(cases())(way))()


@ways
@pytest.mark.slow
def test_thousands_of_programs_read_what_hooks_read(way):
    LONG(given(cases())(way))()
