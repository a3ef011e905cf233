"""Skip the body of a `with`: the context manager takes the body away, and runs it later.

    def __enter__(self):
        self.skip = Skip(sys._getframe(1))

    def __exit__(self, kind, error, traceback):
        return self.skip.swallow(error)

Only a tracing function can raise between two instructions of a frame. 3.11 has `sys.settrace`
(1.5 µs a skip). 3.12 builds it on `sys.monitoring` and rewrites all running code when it is set
(16 µs), so there one code object alone is watched (4 µs), unless a debugger or a coverage tool is
tracing: then that one is set aside for the length of the skip, as on 3.11, and put back as it was.
"""

import sys
from collections import deque
from itertools import repeat
from threading import Lock, get_ident
from types import CodeType, FrameType, FunctionType, MethodType
from typing import Any

from insitu.engine.capture.frame_names import release

_monitoring: Any = getattr(sys, "monitoring", None)  # from 3.12 on
_TOOLS = (4, 3, 5)  # 0 to 2 are set aside for debuggers, coverage and profilers


class Skipped(BaseException):
    """Raised in the frame whose `with` body is skipped; its `__exit__` swallows it."""


class Skip:
    """One body that is skipped, from its first instruction to the `__exit__` after it.

    Make it last in `__enter__`: the caller's frame leaves the body at the next thing it does.
    """

    __slots__ = ("_before", "_error", "frame")

    def __init__(self, frame: FrameType) -> None:
        self.frame: FrameType | None = frame
        self._error: BaseException | None = None
        self._before: Any = None
        tracing: Any = sys.gettrace()
        if _monitoring is not None and tracing is None and _watch(self, frame.f_code):
            return
        self._before = (tracing, frame.f_trace, frame.f_trace_opcodes)
        frame.f_trace_opcodes = True
        frame.f_trace = self.leave
        if tracing is not None and _counts_calls(tracing):
            for inner in _frames_within(frame):  # which it has seen being called
                inner.f_trace = tracing
        sys.settrace(_look_away)

    def leave(self, *_: Any) -> Any:
        """Raise in the frame, as its tracing function."""
        self._error = Skipped()
        raise self._error

    def swallow(self, error: BaseException | None) -> bool:
        """Put the frame's tracing back as it was; whether `error` is this skip's own."""
        frame, before = self.frame, self._before
        if frame is None:
            return False
        if before is None:
            _unwatch(self, frame.f_code)
        else:
            tracing, own, frame.f_trace_opcodes = before
            frame.f_trace = own
            if tracing is None:
                sys.settrace(None)
            else:
                _hand_back(tracing, frame)
        mine = error is not None and error is self._error
        self.frame = self._error = self._before = None
        if mine and error is not None:
            error.__traceback__ = None
            release(frame)
        return mine


def without_skip(error: BaseException) -> None:
    """Take the skip out of an error raised while a body ran in `__exit__`, where it is handled."""
    seen: set[int] = set()
    while error.__context__ is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error.__context__, Skipped):
            error.__context__ = None
            return
        error = error.__context__


def _look_away(frame: FrameType, event: str, argument: Any) -> None:
    """Trace nothing in the frames between the skip and the caller's next instruction."""


def _counts_calls(tracing: Any) -> bool:
    """Whether a tracer is written in C, as coverage.py's is: it pairs calls with returns."""
    return not isinstance(tracing, (FunctionType, MethodType))


def _hand_back(tracing: Any, frame: FrameType) -> None:
    """Let a tracer go on, from the next line of the frame."""
    unseen = _frames_within(frame)[::-1] if _counts_calls(tracing) else []  # being called
    sys.settrace(tracing)
    deque(map(tracing, unseen, repeat("call"), repeat(None)), 0)  # one line: none is counted
    unseen.clear()  # this frame is in it: the two would keep the caller's, and all it holds


def _frames_within(frame: FrameType) -> list[FrameType]:
    """The frames between the caller of this function and a frame around it, from the inside."""
    found, inner = [], sys._getframe(1)
    while inner is not frame and inner.f_back is not None:
        found.append(inner)
        inner = inner.f_back
    return found


# 3.12 on: one code object is watched, for as long as a thread waits to leave it ------------------

_lock = Lock()
_waiting: dict[int, Skip] = {}  # by thread
_tools: list[int] = []  # the one in use


def _watch(skip: Skip, code: CodeType) -> bool:
    """Have this thread's next instruction in `code` raise; False when no tool is free."""
    with _lock:
        if not _tools:
            tool = next((t for t in _TOOLS if _monitoring.get_tool(t) is None), None)
            if tool is None:
                return False
            _monitoring.use_tool_id(tool, "insitu")
            _monitoring.register_callback(tool, _monitoring.events.INSTRUCTION, _step)
            _tools.append(tool)
        _waiting[get_ident()] = skip
        _monitoring.set_local_events(_tools[0], code, _monitoring.events.INSTRUCTION)
    return True


def _step(code: CodeType, offset: int) -> None:
    skip = _waiting.get(get_ident())
    if skip is not None and skip.frame is not None and skip.frame.f_code is code:
        with _lock:
            _look_elsewhere(code)
        skip.leave()


def _look_elsewhere(code: CodeType) -> None:
    """This thread waits no longer; stop watching unless another one waits in the same code."""
    _waiting.pop(get_ident(), None)
    if not any(
        other.frame is not None and other.frame.f_code is code for other in _waiting.values()
    ):
        _monitoring.set_local_events(_tools[0], code, 0)


def _unwatch(skip: Skip, code: CodeType) -> None:
    with _lock:
        if _waiting.get(get_ident()) is skip:  # the frame was left otherwise
            _look_elsewhere(code)
        if not _waiting and _tools:
            tool = _tools.pop()
            _monitoring.register_callback(tool, _monitoring.events.INSTRUCTION, None)
            _monitoring.free_tool_id(tool)
