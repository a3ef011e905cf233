"""Traces without a model, for tests of captured bodies.

With INSITU_STUB in the environment it runs on any interpreter, without torch.

with Trace() as tracer:
    with tracer.invoke(3) as given:
        doubled = given * 2
"""

import os
import pathlib
import sys
import types

SOURCE = pathlib.Path(__file__).resolve().parents[2] / "src" / "insitu"


def stub_packages():
    """Let `insitu.engine.capture` be imported without the rest of the package and torch."""
    for name, folder in (("insitu", SOURCE), ("insitu.engine", SOURCE / "engine")):
        if name not in sys.modules:
            module = types.ModuleType(name)
            module.__path__ = [str(folder)]
            sys.modules[name] = module


if "INSITU_STUB" in os.environ:
    stub_packages()

from insitu.engine.capture import bodies as capture  # noqa: E402, F401
from insitu.engine.capture import per_code, usage  # noqa: E402, F401
from insitu.engine.capture.bodies import Names, Skip, find_body  # noqa: E402
from insitu.errors import CaptureError  # noqa: E402, F401


class Captured:
    """A `with` whose body is taken away."""

    def __init__(self, trace, value, runs):
        self.trace, self.value, self.runs = trace, value, runs

    def __enter__(self):
        frame = sys._getframe(1)
        self.body = find_body(frame, "tracer.invoke")
        self.names = Names(frame, self.body, self.trace.names[-1] if self.trace.names else None)
        self.skip = Skip(frame)

    def __exit__(self, kind, error, traceback):
        if not self.skip.swallow(error):
            return False
        if self.runs:
            try:
                for value in self.runs:
                    self.run(value)
            finally:
                self.names.write_back()
                self.names.close()
        else:
            self.trace.names.append(self.names)
            self.trace.captured.append(self)
        return True

    def run(self, value):
        if self.body.target is not None:
            self.names[self.body.target] = value
        self.body.run(self.names)


class Trace:
    """Runs the bodies of its invokes when its own ends, in order."""

    def __init__(self):
        self.names, self.captured = [], []

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        try:
            if error is None:
                for captured in self.captured:
                    captured.run(captured.value)
        finally:
            for names in self.names:
                names.write_back()
            for names in self.names:
                names.close()

    def invoke(self, value=None):
        return Captured(self, value, ())

    def iter(self, *values):
        """The body is run here, once for each value."""
        return Captured(self, None, values)


def now(*values):
    """A body that is run at once, like `with tracer.iter[…]:`."""
    return Trace().iter(*(values or (None,)))
