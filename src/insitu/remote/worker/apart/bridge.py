"""The job's side: the engine runs here as ever, on a model whose modules compute elsewhere.

    bridge = Bridge(model._module)              # every module's forward leads over it from now on
    bridge.connect(fd, mine, theirs)            # in the job
    with model.trace("…"): …                    # unchanged

A forward that is called here is a call there. While it runs there, a module that someone listens to
is called here once more, through everything that the engine has put around it, and the forward at
the bottom of that says "go on" instead of calling.
"""

import time
from threading import get_ident
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from insitu.engine import brought
from insitu.engine.fakes import on_fakes
from insitu.engine.switch import getcurrent
from insitu.errors import UsageError
from insitu.remote.worker.apart.channel import Channel
from insitu.remote.worker.apart.grammar import is_unchanging
from insitu.remote.worker.apart.graph import says_gradients
from insitu.remote.worker.apart.known import Known
from insitu.remote.worker.apart.raised import error_of
from insitu.remote.worker.apart.shared import Segment
from insitu.remote.worker.apart.weights import Weights
from insitu.remote.worker.apart.wishes import NOBODY, Row, is_begun_by_a_trace, wishes

_HUNG_UP_S = 3.0
"""Whoever hung up has told why, and ends this process before."""

_HOOKED = -1
"""No number that torch gives a hook: there were hooks from the beginning, transformers' own."""

_dispatches = torch._C._len_torch_dispatch_stack


class _Frame:
    """A module that is called, or has returned, there, while its wrappers run here."""

    __slots__ = ("args", "begun", "here", "kwargs", "number", "output", "over")

    def __init__(self, number: int, args: Any, kwargs: Any, output: Any, over: bool) -> None:
        self.number = number
        self.args = args
        self.kwargs = kwargs
        self.output = output
        self.over = over
        """It has returned there: nothing is left to be computed."""
        self.begun = False
        self.here = getcurrent()


class Bridge:
    """Leads the forwards of a model's modules to the device process."""

    def __init__(self, root: nn.Module) -> None:
        self._modules = {"skeleton": root}  # says that it calls them (`engine.reachable`)
        self.skeleton = list(root.modules())
        self._plain: dict[int, Any] = {}
        self._table: list[Row] = []
        for number, module in enumerate(self.skeleton):
            kind = type(module)
            ours = kind.__module__.startswith("insitu.")  # stands for what runs here, as a pipeline
            if kind.forward is not nn.Module.forward and not ours:
                self._lead(number, module)
        self._weights = Weights(root)
        self._channel: Channel | None = None
        self._stack: list[_Frame | None] = []
        """Calls (None) and frames that are under way, the innermost last."""
        self._heard = NOBODY
        self._hooks = 0
        self._thread = 0
        self._raised: BaseException | None = None
        self._raised_there: tuple[str, str] = ("", "")
        self._broken: UsageError | None = None

    def connect(self, fd: int, mine: int, theirs: int) -> None:
        """Speak over a socket and two pieces of shared memory from now on."""
        self._channel = Channel(fd, Segment(mine), Segment(theirs))
        self._known = Known(self._channel, self._ask, self._pull)
        self._heard = NOBODY
        hooked = any(it._forward_hooks or it._forward_pre_hooks for it in self.skeleton)
        self._hooks = _HOOKED if hooked else RemovableHandle.next_id
        brought.by(self._bring)

    def close(self) -> None:
        """Hang up."""
        brought.by(None)
        if self._channel is not None:
            self._channel.close()
            self._channel = None
            del self._known  # with it go its maps of memory, each of which has a file open
        self._stack = []

    # The forwards -------------------------------------------------------------------------------

    def _lead(self, number: int, module: nn.Module) -> None:
        own = module.forward
        self._plain[number] = getattr(own, "__func__", own)

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._runs_here(number, own):
                args, kwargs = self._bring((args, kwargs))
                return own(*args, **kwargs)
            return self._forward(number, args, kwargs)

        forward.__wrapped__ = own  # type: ignore[attr-defined]
        module.__dict__["forward"] = forward
        self._table.append((number, module, module.__dict__, forward))

    def _runs_here(self, number: int, own: Any) -> bool:
        """Whether a forward was written anew, to stop at its operations, or has fake tensors."""
        return getattr(own, "__func__", own) is not self._plain[number] or (
            _dispatches() > 0 and on_fakes()
        )

    def _forward(self, number: int, args: Any, kwargs: Any) -> Any:
        frame = self._stack[-1] if self._stack else None
        if (
            frame is not None
            and frame.number == number
            and not frame.begun
            and frame.here is getcurrent()
        ):
            return self._go_on(frame, args, kwargs)
        self._require_own_thread()
        self._stack.append(None)
        recorded = self._known.with_grad
        try:
            self._begin()
            later = is_begun_by_a_trace(self.skeleton[number])
            if later:
                self._known.graph.begin()
            self._known.with_grad = torch.is_grad_enabled() and says_gradients()
            told = self._known.told(args), self._known.told(kwargs)
            self._say("call", number, *told, not later, self._known.with_grad)
            result = self._listen("result")
            return self._bring(result) if not later or number in self._heard[1] else result
        finally:
            self._known.with_grad = recorded
            self._stack.pop()
            if not self._stack:
                self._thread, self._raised = 0, None

    def _go_on(self, frame: _Frame, args: Any, kwargs: Any) -> Any:
        frame.begun = True
        if frame.over:
            return frame.output
        self._require_top(frame)
        self._begin()
        if _is_same(args, frame.args) and _is_same(kwargs, frame.kwargs):
            self._say("go")
        else:
            self._say("go", self._known.told(args), self._known.told(kwargs))
        frame.output = self._listen("exit")
        if frame.number in self._heard[1]:
            frame.output = self._bring(frame.output)
        return frame.output

    # Messages -----------------------------------------------------------------------------------

    def _listen(self, until: str) -> Any:
        """Serve what the device process tells until it has what is waited for."""
        while True:
            kind, *parts = self._hear()
            if kind == until:
                return self._known.read(parts[0])
            if kind == "failed":
                raise self._failed(*parts)
            self._stop(kind, *parts)

    def _stop(self, kind: str, number: int, *parts: Any) -> None:
        """A module is called there, or has returned: let the engine have it."""
        args, kwargs, *output = [self._known.read(part) for part in parts]
        over = kind == "left"
        if number in self._heard[2]:
            args, kwargs = self._bring((args, kwargs))
        given = self._bring(output[0]) if over else None
        frame = _Frame(number, args, kwargs, given, over)
        self._stack.append(frame)
        try:
            value = self.skeleton[number](*args, **kwargs)
            self._require_top(frame)
            self._begin()
            same = frame.begun and value is frame.output and is_unchanging(value)
            answer = ["return"] if same else ["return", self._known.told(value)]
        except BaseException as error:
            self._require_top(frame)
            answer = ["raise", error is self._raised and bool(self._raised_there[0])]
            self._raised = error
            self._begin()
        self._say(*answer)
        self._stack.remove(frame)

    def _begin(self) -> None:
        self._require_channel().begin()
        self._known.begin()

    def _say(self, kind: str, *parts: Any) -> None:
        channel, known = self._require_channel(), self._known
        changed: list[Any] = []  # first: it may refuse, and then nothing has been told
        if kind == "call" or (kind in ("go", "return") and self._weights.touched()):
            changed = [[n, name, known.told(new)] for n, name, new in self._weights.changed()]
        edits = [[number, channel.mine.put(tensor.detach())] for number, tensor in known.edits()]
        freed = known.freed()
        heard = wishes(self._table, self._hooks != RemovableHandle.next_id)
        news = heard if heard != self._heard else None
        self._heard = heard
        tail = [edits, freed, news, changed] if edits or freed or news or changed else []
        channel.send([kind, tail, *parts])
        known.sent()

    def _hear(self) -> list[Any]:
        message = self._require_channel().receive()
        if message is None:
            time.sleep(_HUNG_UP_S)
            raise ConnectionError("the process of the model has ended.")
        return message

    def _failed(self, kind: str, text: str) -> BaseException:
        """What was raised there; what was raised here comes back as it is."""
        raised, there = self._raised, self._raised_there
        if raised is not None and (not kind or there == (kind, text)):
            return raised
        self._raised, self._raised_there = error_of(kind, text), (kind, text)
        return self._raised

    def _ask(self, number: int, name: str, args: Any, kwargs: Any) -> Any:
        """Ask an object there something, and wait for what it gives."""
        self._require_own_thread()
        self._begin()
        self._say("ask", number, name, self._known.told(args), self._known.told(kwargs))
        return self._bring(self._listen("result"))

    def _pull(
        self, number: int, grad: torch.Tensor, numbers: list[int]
    ) -> list[torch.Tensor | None]:
        """What a gradient at one value is at others, which it came of."""
        self._require_own_thread()
        self._begin()
        laid = grad.detach()
        at = self._require_channel().mine.put(laid)
        told = ["n", str(laid.dtype).removeprefix("torch."), list(laid.shape), at, None]
        self._say("pull", number, told, numbers)
        found: list[torch.Tensor | None] = self._listen("result")
        return found

    def _bring(self, value: Any) -> Any:
        """A value with what its tensors hold, fetched where it is not here yet."""
        if numbers := self._known.missing(value):
            self._begin()
            self._say("fetch", numbers)
            kind, *parts = self._hear()
            if kind == "failed":  # more than one message can bring
                raise self._failed(*parts)
            kept = [self._known.read(part) for part in parts[0]]
            value = self._known.bring(value)
            del kept
        return value

    # What must hold ------------------------------------------------------------------------------

    def _require_channel(self) -> Channel:
        if self._broken is not None:
            raise self._broken
        if self._channel is None:
            raise ConnectionError("the process of the model is not connected.")
        return self._channel

    def _require_own_thread(self) -> None:
        if self._thread not in (0, get_ident()):
            raise UsageError(
                "the model was called in a second thread while it runs.",
                "on this server it computes in a process of its own, for one caller at a time.",
                "call it in the thread of the trace, or after the trace.",
            )
        self._thread = get_ident()

    def _require_top(self, frame: _Frame) -> None:
        if self._stack[-1] is frame:
            return
        self._broken = UsageError(
            "a pass was resumed while another one that began later is under way.",
            "on this server the model computes in a process of its own, where passes end in the "
            "opposite order in which they began.",
            "end the inner trace first: read what you need of it, and leave its `with`.",
        )
        raise self._broken


def _is_same(value: Any, before: Any) -> bool:
    """Whether arguments are the same objects, none of which may have changed within."""
    if isinstance(value, dict):
        return value.keys() == before.keys() and all(
            value[key] is before[key] and is_unchanging(value[key]) for key in value
        )
    return len(value) == len(before) and all(
        one is other and is_unchanging(one) for one, other in zip(value, before, strict=True)
    )
