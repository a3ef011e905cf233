"""The device process's side of one job: a coroutine of calls over one socket.

    job                                             device process
    ───                                             ──────────────
    call 0 (input_ids) ───────────────────────────► model.forward …
                                                    h.2 returns, its Stop speaks
                        ◄── left 2: the value ─────
    the block edits it
    return: the value ────────────────────────────► goes on with it
                        ◄── result ────────────────

Whoever is spoken to answers, and may call, fetch or ask before it does. Everything that comes is
checked; what is wrong ends the conversation, and the pass at the next module it calls. That holds
for what no check has foreseen too: no message ends this process.
"""

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
from torch import nn

from insitu.remote.wire.caches import is_cache
from insitu.remote.worker.apart import questions
from insitu.remote.worker.apart.channel import Channel, ChannelError, NoMemoryError, refusal_of
from insitu.remote.worker.apart.held import Held
from insitu.remote.worker.apart.stops import Abandoned, Everyone, Room
from insitu.remote.worker.apart.weights import TRAINING

DEEP_MOST = 64
"""Calls within calls."""


class Conversation:
    """One job's, from its first message to its last."""

    def __init__(self, room: Room, channel: Channel, lasting: frozenset[int]) -> None:
        self.refusal = ""
        """What it sent that it may not; empty for a job that keeps to the rules."""
        self.lacked_memory = False
        """It was refused for want of memory alone."""
        self._room = room
        self._channel = channel
        self._held = Held(channel, lasting)
        self._deep = 0
        self._gone = False

    def run(self) -> None:
        """Answer until the job is gone, or says what it may not."""
        room = self._room
        room.heard = self
        try:
            with torch.no_grad(), _watched(self._channel.fd, self._end):
                while True:
                    self._answer(self._receive())
        except Abandoned:
            pass
        except Exception as error:  # as when a refusal itself found no memory
            self._note(error)
        finally:
            room.empty()

    def _end(self) -> None:
        """The job is gone: its pass ends at the next call of a module."""
        self._gone = True
        self._room.enters = Everyone()

    # Messages -----------------------------------------------------------------------------------

    def _receive(self) -> list[Any]:
        if self._gone:
            raise Abandoned
        try:
            message = self._channel.receive()
            if message is not None:
                self._take_tail(message)
                return message
        except OSError:
            pass
        except Exception as error:
            self._refuse(error)
        self._end()
        raise Abandoned

    def _refuse(self, error: Exception) -> NoReturn:
        self._note(error)
        self._end()
        raise Abandoned from error

    def _note(self, error: Exception) -> None:
        if not self.refusal:
            reason = refusal_of(error)
            self.refusal = str(reason)[:300]
            self.lacked_memory = isinstance(reason, NoMemoryError)

    def _take_tail(self, message: list[Any]) -> None:
        """What every message tells besides: edits, numbers that are not needed, who is to speak."""
        if len(message) < 2 or not isinstance(message[1], list) or len(message[1]) not in (0, 4):
            raise ChannelError("a message without its second part")
        if not message[1]:
            return
        edits, forgotten, heard, weights = map(_list, message[1])
        if heard:
            room = self._room
            if len(heard) != 3:
                raise ChannelError("lists of modules that are none")
            room.enters, room.exits, room.gives = (_numbers(numbers) for numbers in heard)
        with torch.no_grad():
            for edit in edits:
                self._held.change(*_list(edit, 2))
            for weight in weights:
                self._set_weight(*_list(weight, 3))
        for number in forgotten:
            self._held.forget(number)

    def _set_weight(self, number: Any, name: Any, told: Any) -> None:
        """Compute with another weight until the job has ended (`Pristine` puts ours back)."""
        self._require_module(number)
        room = self._room
        module = room.modules[number]
        if type(name) is not str:
            raise ChannelError("a weight that is none")
        if name == TRAINING and type(told) is bool:
            module.training = told
            return
        store = next((it for it in (module._parameters, module._buffers) if name in it), None)
        before = None if store is None else store[name]
        new = self._held.read(told, room.devices[number])
        if before is None or not isinstance(new, torch.Tensor):
            raise ChannelError("a weight that is none")
        if new.shape != before.shape or new.dtype is not before.dtype:
            raise ChannelError("a weight of another shape or dtype")
        kept: Any = nn.Parameter(new, False) if isinstance(before, nn.Parameter) else new
        store[name] = kept  # type: ignore[index]

    def _require_module(self, number: Any) -> None:
        if type(number) is not int or not 0 <= number < len(self._room.modules):
            raise ChannelError("a module that the model does not have")

    def _send(self, *message: Any) -> None:
        try:
            self._channel.send(list(message))
        except OSError:
            self._end()
            raise Abandoned from None

    def _converse(self, *message: Any, may: tuple[str, ...]) -> list[Any]:
        """Say something and wait for its answer; the job may ask before."""
        if self._gone:
            raise Abandoned
        self._send(*message)
        while True:
            answer = self._receive()
            if answer[0] in may:
                return answer
            self._answer(answer)

    # What a job asks for -------------------------------------------------------------------------

    def _answer(self, message: list[Any]) -> None:
        try:
            if message[0] not in _ANSWERS:
                raise ChannelError(f"{message[0][:40]!r} out of its turn")
            answer, parts = _ANSWERS[message[0]]
            if len(message) != 2 + parts:
                raise ChannelError(f"{message[0]!r} with {len(message) - 2} parts")
            answer(self, *message[2:])
        except Exception as error:
            self._refuse(error)

    def _call(self, number: Any, args: Any, kwargs: Any, given: Any, recorded: Any) -> None:
        """Run a module's forward; what it returns is told with its values, or without.

        Recorded for gradients or not, as the job says.
        """
        room = self._room
        self._require_module(number)
        if self._deep >= DEEP_MOST:
            raise ChannelError(f"more than {DEEP_MOST} calls within calls")
        args = self._held.read(args, room.devices[number])
        kwargs = self._held.read(kwargs, room.devices[number])
        if type(args) is not tuple or type(kwargs) is not dict or not _are_names(kwargs):
            raise ChannelError("arguments that are none")
        self._deep += 1
        try:
            with torch.set_grad_enabled(recorded is True):
                result = room.forwards[number](*args, **kwargs)
        except Exception as error:
            if self._gone:
                raise Abandoned from None
            self._held.begin()
            self._send("failed", *_said(error))
        except Abandoned:
            if self._gone:
                raise
            self._send("failed", "", "")
        else:
            self._held.begin()
            self._tell_result(result, given=given is not False or number in room.exits)
        finally:
            self._deep -= 1

    def _tell_result(self, result: Any, *, given: bool = True) -> None:
        try:
            told = self._held.told(result, given=given)
        except RuntimeError as error:
            self._send("failed", *_said(error))
            return
        self._send("result", told)

    def _pull(self, number: Any, grad: Any, numbers: Any) -> None:
        """Give what a gradient at one value is at others."""
        self._held.begin()
        try:
            self._send("result", self._held.pulled(number, grad, numbers))
        except ChannelError:
            raise
        except Exception as error:
            self._send("failed", *_said(error))

    def _fetch(self, numbers: Any) -> None:
        """Give the values of tensors that the job knows by number."""
        self._held.begin()
        try:
            found = self._held.fetched(numbers)
        except RuntimeError as error:
            self._send("failed", *_said(error))
        else:
            self._send("values", found)

    def _ask(self, number: Any, name: Any, args: Any, kwargs: Any) -> None:
        """Ask a key-value cache something."""
        cache, device = self._held.of(number), self._room.device
        args, kwargs = self._held.read(args, device), self._held.read(kwargs, device)
        if not is_cache(cache) or type(args) is not tuple or type(kwargs) is not dict:
            raise ChannelError("a question to what is no cache")
        questions.require(name, args, kwargs)
        self._held.begin()
        try:
            result = questions.asked(cache, name, args, kwargs)
        except Exception as error:
            self._send("failed", *_said(error))
            return
        self._tell_result(result)

    # What stops tell -----------------------------------------------------------------------------

    def call(self, number: int, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A module that the job listens to is called: with what, and what does it return?"""
        if self._gone:
            raise Abandoned
        self._held.begin()
        if number in self._room.gives and torch.is_grad_enabled():
            args, kwargs = self._held.cut((args, kwargs))
        told = self._told(args, kwargs, number)
        answer = self._converse("enter", number, *told, may=("go", "return", "raise"))
        if answer[0] != "go":
            return self._returned(answer, number, None)
        if len(answer) > 2:
            args, kwargs = self._arguments(answer, number)
        else:
            args, kwargs = self._held.now((args, kwargs))
        try:
            output = forward(*args, **kwargs)
        except Abandoned:
            if self._gone:
                raise
            self._held.begin()
            return self._returned(self._converse("failed", "", "", may=("raise",)), number, None)
        except Exception as error:
            self._held.begin()
            answer = self._converse("failed", *_said(error), may=("return", "raise"))
            if answer[0] == "raise" and len(answer) > 2 and answer[2] is True:
                raise
            return self._returned(answer, number, None)
        self._held.begin()
        if number in self._room.exits and torch.is_grad_enabled():
            output = self._held.cut(output)
        told = self._held.told(output, given=number in self._room.exits)
        return self._returned(self._converse("exit", told, may=("return", "raise")), number, output)

    def left(self, number: int, args: Any, kwargs: Any, output: Any) -> Any:
        """A module whose output the job waits for has returned."""
        if self._gone:
            raise Abandoned
        self._held.begin()
        if torch.is_grad_enabled():
            output = self._held.cut(output)
        told = (*self._told(args, kwargs, number), self._held.told(output, given=True))
        return self._returned(
            self._converse("left", number, *told, may=("return", "raise")), number, output
        )

    def _told(self, args: Any, kwargs: Any, number: int) -> tuple[Any, Any]:
        held, given = self._held, number in self._room.gives
        return held.told(args, given=given), held.told(kwargs, given=given)

    def _arguments(self, answer: list[Any], number: int) -> tuple[Any, Any]:
        device = self._room.devices[number]
        try:
            if len(answer) != 4:
                raise ChannelError("'go' without its arguments")
            args, kwargs = self._held.read(answer[2], device), self._held.read(answer[3], device)
            if type(args) is not tuple or type(kwargs) is not dict or not _are_names(kwargs):
                raise ChannelError("arguments that are none")
        except Exception as error:
            self._refuse(error)
        return args, kwargs

    def _returned(self, answer: list[Any], number: int, output: Any) -> Any:
        if answer[0] == "raise":
            raise Abandoned
        if len(answer) == 2:
            return self._held.now(output)
        try:
            return self._held.read(answer[2], _device_of(output, self._room.devices[number]))
        except Exception as error:
            self._refuse(error)


_ANSWERS: dict[str, tuple[Callable[..., None], int]] = {
    "call": (Conversation._call, 5),
    "pull": (Conversation._pull, 3),
    "fetch": (Conversation._fetch, 1),
    "ask": (Conversation._ask, 4),
}


def _list(told: Any, length: int | None = None) -> list[Any]:
    """A list, of that length; none where a message leaves it out."""
    if told is None and length is None:
        return []
    if not isinstance(told, list) or (length is not None and len(told) != length):
        raise ChannelError("a part of a message that is none")
    return told


def _numbers(told: Any) -> frozenset[int]:
    if not isinstance(told, list) or not all(type(number) is int for number in told):
        raise ChannelError("a list of modules that is none")
    return frozenset(told)


def _are_names(kwargs: dict[Any, Any]) -> bool:
    return all(type(name) is str for name in kwargs)


def _said(error: BaseException) -> tuple[str, str]:
    """An error as its class and its text."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else (
        f"{kind.__module__}.{kind.__qualname__}"
    )  # fmt: skip
    return name[:200], str(error)[:20_000]


def _device_of(value: Any, otherwise: torch.device) -> torch.device:
    """Where the first tensor of a value is."""
    if isinstance(value, torch.Tensor):
        return value.device
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        for part in value:
            if isinstance(part, (torch.Tensor, dict, tuple, list)):
                return _device_of(part, otherwise)
    return otherwise


@contextlib.contextmanager
def _watched(fd: int, gone: Callable[[], None]) -> Iterator[None]:
    """Have a thread tell when the other side of a socket is gone, while the model computes."""
    with socket.socket(fileno=socket.dup(fd)) as end:

        def watch() -> None:
            poller = select.poll()
            poller.register(end.fileno(), 0)  # that it is gone is told unasked
            poller.poll()
            gone()

        thread = threading.Thread(target=watch, name="insitu-job", daemon=True)
        thread.start()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            thread.join()
