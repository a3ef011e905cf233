"""A shell of its own in this process, and what a cell shows in it."""

from dataclasses import dataclass, field

import pytest
from IPython.utils.capture import capture_output


@dataclass
class Shown:
    """What a cell printed, displayed and raised."""

    printed: str = ""
    displayed: list = field(default_factory=list)
    error: BaseException | None = None

    @property
    def html(self):
        return next(d["text/html"] for d in self.displayed if "text/html" in d)

    @property
    def text(self):
        return next(d["text/plain"] for d in self.displayed if "text/html" in d)


@pytest.fixture
def shell(bare_shell):
    """A shell that has run `%load_ext insitu`."""
    bare_shell.run_line_magic("load_ext", "insitu")
    yield bare_shell
    bare_shell.run_line_magic("unload_ext", "insitu")


@pytest.fixture
def cell(shell, llm):
    """Run a cell in a notebook that has a `model`: `cell(code)` gives a `Shown`."""
    shell.user_ns["model"] = llm

    def run(code):
        with capture_output() as caught:
            result = shell.run_cell(code)
        error = result.error_before_exec or result.error_in_exec
        return Shown(caught.stdout, [output.data for output in caught.outputs], error)

    run.names = shell.user_ns
    return run
