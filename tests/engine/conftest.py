"""What coverage.py is told of greenlets, where it measures."""

import sys

import greenlet
import pytest


def _tell_coverage(event, args):
    """Let coverage's tracer find the frame it is in now.

    It looks for its place when a function is called or returns. A switch is neither: it would
    count the lines that follow it in the file the last greenlet was in.
    """
    tracing = sys.gettrace()
    if type(tracing).__name__ == "CTracer":
        tracing(sys._getframe(), "call", None)  # a name for the frame would keep it in a cycle
        tracing(sys._getframe(), "return", None)


@pytest.fixture(autouse=True, scope="session")
def measured_across_switches():
    if type(sys.gettrace()).__name__ != "CTracer":
        yield
        return
    before = greenlet.settrace(_tell_coverage)
    yield
    greenlet.settrace(before)
