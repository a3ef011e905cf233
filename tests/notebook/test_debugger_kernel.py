"""A debugger that speaks ipykernel's protocol, as JupyterLab's does, stops inside a trace."""

import time
from collections.abc import Callable, Iterator
from queue import Empty
from typing import Any

import pytest

pytest.importorskip("debugpy")
manager = pytest.importorskip("jupyter_client.manager")

PATIENCE_S = 60

MODEL = """\
import torch
from insitu import NNsight
model = NNsight(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 4)))
x = torch.ones(1, 2)
"""
TRACE = """\
with model.trace(x) as tracer:
    first = model[0].output
    rows = first.shape[0]
    second = model[1].output
after = second.shape
"""
MAGIC = """\
%%trace model x
first = model[0].output
rows = first.shape[0]
second = model[1].output
"""


class Debugger:
    """The two channels a front end debugs through: requests on control, events on iopub."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._said = 0
        self._running = ""

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        self._said += 1
        content = {
            "type": "request",
            "seq": self._said,
            "command": command,
            "arguments": arguments,
        }
        message = self._client.session.msg("debug_request", content)
        self._client.control_channel.send(message)
        reply = self._client.control_channel.get_msg(timeout=PATIENCE_S)
        while reply["parent_header"].get("msg_id") != message["header"]["msg_id"]:
            reply = self._client.control_channel.get_msg(timeout=PATIENCE_S)
        assert reply["content"]["success"], reply["content"]
        body: dict[str, Any] = reply["content"].get("body") or {}
        return body

    def attach(self) -> None:
        self.ask("initialize", clientID="test", adapterID="", linesStartAt1=True, pathFormat="path")
        self.ask("attach")

    def break_in(self, cell: str, at: str) -> int:
        """Break at the one line of the cell that holds these words; say which that is."""
        line = line_of(cell, at)
        path = self.ask("dumpCell", code=cell)["sourcePath"]
        answer = self.ask("setBreakpoints", source={"path": path}, breakpoints=[{"line": line}])
        assert answer["breakpoints"][0]["verified"], answer
        self.ask("configurationDone")
        return line

    def run(self, code: str) -> None:
        """Send a cell off; it may stop on its way."""
        self._running = self._client.execute(code)

    def run_out(self, code: str) -> None:
        self.run(code)
        self.ended()

    def ended(self) -> None:
        """Wait for the cell to end."""
        self._heard("status", lambda content: content["execution_state"] == "idle")

    def _heard(self, kind: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The next message of a kind on iopub; an error in the running cell is a failure here."""
        deadline = time.monotonic() + PATIENCE_S
        while (left := deadline - time.monotonic()) > 0:
            try:
                message = self._client.get_iopub_msg(timeout=left)
            except Empty:
                break
            content: dict[str, Any] = message["content"]
            ours = message["parent_header"].get("msg_id") == self._running
            assert not (ours and message["msg_type"] == "error"), "\n".join(content["traceback"])
            if message["msg_type"] == kind and (ours or kind == "debug_event") and wanted(content):
                return content
            idle = ours and content.get("execution_state") == "idle"
            assert not idle, f"the cell ended before any such {kind}"
        raise AssertionError(f"no such {kind} was heard in {PATIENCE_S} s")

    # What a stop shows -----------------------------------------------------------------------

    def stopped(self, reason: str) -> tuple[int, dict[str, Any]]:
        """Where it stopped: the thread, and the frame that stands on top."""
        event = self._heard("debug_event", lambda content: content["event"] == "stopped")
        body = event["body"]
        assert body["reason"] == reason
        frames = self.ask("stackTrace", threadId=body["threadId"])["stackFrames"]
        return body["threadId"], frames[0]

    def variables(self, frame: dict[str, Any]) -> dict[str, str]:
        """The names a frame sees, with their values as text."""
        seen = {}
        for scope in self.ask("scopes", frameId=frame["id"])["scopes"]:
            found = self.ask("variables", variablesReference=scope["variablesReference"])
            seen |= {variable["name"]: variable["value"] for variable in found["variables"]}
        return seen


def line_of(cell: str, words: str) -> int:
    (line,) = [n for n, text in enumerate(cell.splitlines(), 1) if words in text]
    return line


@pytest.fixture(scope="module")
def debugger() -> Iterator[Debugger]:
    kernel, client = manager.start_new_kernel(kernel_name="python3", startup_timeout=PATIENCE_S)
    try:
        debugger = Debugger(client)
        debugger.run_out(MODEL)
        debugger.attach()
        yield debugger
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
        kernel.cleanup_resources()


def stops_and_steps(debugger: Debugger, cell: str) -> None:
    """Stop where the body first reads, go one line, see what it bound, and let it run out."""
    line = debugger.break_in(cell, at="first = model[0].output")
    debugger.run(cell)

    thread, frame = debugger.stopped("breakpoint")
    assert frame["line"] == line

    debugger.ask("next", threadId=thread)
    thread, frame = debugger.stopped("step")
    assert frame["line"] == line + 1
    assert debugger.variables(frame)["first"].startswith("tensor(")

    debugger.ask("next", threadId=thread)
    thread, frame = debugger.stopped("step")
    assert frame["line"] == line + 2
    assert debugger.variables(frame)["rows"] == "1"

    debugger.ask("continue", threadId=thread)
    debugger.ended()


def test_a_breakpoint_inside_a_trace_block_stops_there_and_steps(debugger: Debugger) -> None:
    stops_and_steps(debugger, TRACE)


def test_a_breakpoint_inside_a_trace_cell_stops_there_and_steps(debugger: Debugger) -> None:
    debugger.run_out("%load_ext insitu")
    stops_and_steps(debugger, MAGIC)


def test_a_pass_that_was_debugged_leaves_the_model_as_it_was(debugger: Debugger) -> None:
    stops_and_steps(debugger, TRACE)
    debugger.run_out("assert torch.equal(second, model[1](model[0](x)))")
    debugger.run_out("assert not any(m._forward_hooks for m in model.modules())")
