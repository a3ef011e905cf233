"""`with model.trace("Hello", remote=True):` a block is sent to a server; its values come back.

    with model.trace("Hello", remote=True) as tracer:
        h = model.transformer.h[2].output.save()
    print(h.shape, tracer.job.id)

Everything that can be refused is refused before anything is sent: a name the server may not use, a
value that cannot travel, a `local()` part that stands where it cannot be cut out.
"""

import sys
from collections.abc import Iterable
from functools import partial
from io import BytesIO
from types import FrameType, TracebackType
from typing import Any

from torch import Tensor

from insitu.engine.capture.bodies import Names, Skip, find_body
from insitu.engine.capture.futures import names_of
from insitu.engine.capture.parsing import parse
from insitu.engine.capture.scope import Body
from insitu.engine.capture.skip import without_skip
from insitu.engine.capture.usage import wants_job
from insitu.engine.save import mount
from insitu.engine.trace import is_entered
from insitu.engine.tracebacks import prune
from insitu.errors import InsituError, PassClosedError, UsageError
from insitu.remote import allowed
from insitu.remote.blocks.block import Block, Text, sent
from insitu.remote.blocks.faults import BlockFailed, error_of
from insitu.remote.blocks.run import RETURNED, execute
from insitu.remote.blocks.taken import Taken, take_apart
from insitu.remote.client import named
from insitu.remote.client.connection import Connection
from insitu.remote.client.job import Caller, RemoteJob
from insitu.remote.client.local_parts import HERE, LocalParts
from insitu.remote.client.model_key import check_attached, edits_of, key_of, renamed_of, views_of
from insitu.remote.client.shown import show
from insitu.remote.protocol import Limits
from insitu.remote.wire import container
from insitu.remote.wire.places import place_of
from insitu.remote.wire.values import decode_all

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def begin(
    model: Any, kind: str, args: tuple[Any, ...], settings: dict[str, Any], frame: FrameType
) -> Any:
    """A tracer whose block runs elsewhere; without a `with`, what the call returns there."""
    tracer = RemoteTracer(model, kind, args, settings)
    if kind == "session" or (is_entered(frame) and not (tracer.is_apart and wants_job(frame))):
        return tracer
    return tracer.alone()


class RemoteTracer:
    """One block that runs on a server. Made by `trace`, `generate` and `session`."""

    def __init__(
        self, model: Any, kind: str, args: tuple[Any, ...], settings: dict[str, Any]
    ) -> None:
        settings = dict(settings)
        self._remote = settings.pop("remote")
        self._blocking = settings.pop("blocking", True)
        self._model = model
        self._block = Block(kind, args, settings, None)
        self._job: RemoteJob | None = None
        self._taken: Taken | None = None
        self._body: Body | None = None
        self._url = HERE
        if self._remote != HERE:
            self._block.edits = edits_of(model)
            self._block.renamed = renamed_of(model)
            self._block.views = views_of(model)

    @property
    def is_apart(self) -> bool:
        """Whether it is not waited for: what is asked for is its job."""
        return not self._blocking and self._remote != HERE

    @property
    def job(self) -> RemoteJob:
        """The job on the server: its id, phase, log and result; `job.cancel()`."""
        if self._job is None:
            raise PassClosedError(
                "there is no job yet.",
                "a block is sent when its `with` ends; with remote='local' there is none at all.",
                "ask for tracer.job after the `with`.",
            )
        return self._job

    def log(self, *values: Any, tags: Iterable[str] | str = ()) -> None:
        """Print values: here, in a `local()` part; elsewhere in the block, by the server.

        The job's log can be filtered by the tags of what the server says.
        """
        print(*values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        sent = " What the block has saved is in tracer.job.result()." if self._job else ""
        raise UsageError(
            f"tracer.{name} was asked for on this machine.",
            "this block runs on a server, and its tracer there has it.",
            f"use tracer.{name} in the block, outside of local() parts, and .save() what it gives."
            + sent,
        )

    # Without a `with` ------------------------------------------------------------------------

    def alone(self) -> Any:
        """Run without a block, and give what the call returns; a job, if it is not waited for."""
        value = self._run(None)
        return self._job if self.is_apart else value

    # As a block ------------------------------------------------------------------------------

    def __enter__(self) -> "RemoteTracer":
        frame = sys._getframe(1)
        try:
            self._take_apart(frame)
        except InsituError as error:
            prune(error.__traceback__)
            raise
        self._skip = Skip(frame)
        return self

    def _take_apart(self, frame: FrameType) -> None:
        """Make a request of the block; whatever is wrong with it is told here."""
        mount()
        body = find_body(frame, f"model.{self._block.kind}")
        names = Names(frame, body)
        values = names.given()
        taken = take_apart(body, values)
        file = frame.f_code.co_filename
        tree = parse("\n" * (taken.line - 1) + taken.text)
        allowed.check(tree, values, where=partial(place_of, file))
        if self._remote != HERE:
            check_attached(self._model, tree, values, file)
            for edit in self._block.edits:
                check_attached(self._model, parse(edit.text), edit.names, edit.file)
        given = {name: values[name] for name in sorted(taken.needs)}
        futures = names_of(frame.f_code.co_flags)
        self._block.body = Text(taken.text, file, taken.line, futures, body.target, given)
        self._block.wanted = [part.wanted for part in taken.parts]
        self._block.sites = [tuple(part.sites) for part in taken.parts]
        self._parts = LocalParts(taken.parts, frame, Limits())
        if body.target is not None:
            self._parts.known[body.target] = self
        self._names, self._body, self._taken = names, body, taken
        self._payload = self._packed()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if not self._skip.swallow(error):
            return False
        try:
            self._take(self._run(self._payload))
        except BaseException as raised:
            without_skip(raised)
            prune(raised.__traceback__)
            raise
        finally:
            if self._blocking:
                self._parts.close()
            self._names.close()
        return True

    def _take(self, values: dict[str, Any] | None) -> None:
        """Assign in the caller's frame what came back."""
        assert self._body is not None
        assert self._block.body is not None
        if self._body.target is not None:
            self._names[self._body.target] = self
        for name, value in (values or {}).items():
            given: Any = self._block.body.names.get(name)
            if not named.fills(given, value):
                self._names[name] = value
            elif isinstance(given, list):
                given[:] = value
            else:
                given.clear()
                given.update(value)
        self._names.write_back()

    def _watch(self, job: RemoteJob) -> None:
        """Show what a job says that is waited for."""
        show(job)

    # Running ---------------------------------------------------------------------------------

    def _packed(self) -> bytes:
        key = "" if self._remote == HERE else key_of(self._model)
        return container.pack(*sent(self._block, self._model, key, PYTHON))

    def _run(self, payload: bytes | None) -> Any:
        """Send the block and wait for its values, or the call's; None where nobody waits."""
        payload = self._packed() if payload is None else payload
        parts = getattr(self, "_parts", None)
        if self._remote == HERE:
            return self._decoded(*_run_here(self._model, payload, parts))
        connection = Connection.of(self._remote)
        self._url = connection.url
        if parts is not None:
            parts.url = connection.url
        run = None if parts is None else parts.run
        caller = Caller(run, decode=self._decoded, error=error_of)
        title = f"{self._block.kind} of {key_of(self._model)}"
        job = RemoteJob.sent(connection, payload, caller, title=title)
        self._job = job
        if self._blocking:
            self._watch(job)
            return job.run()
        if parts is not None:
            parts.leave_the_frame()
        job.start()
        return None

    def _decoded(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
        """A result, by name: the names that it may give values to, and no others.

        Of a call without a block it is what the call returned.
        """
        values = decode_all(header, tensors)
        given = {} if self._block.body is None else self._block.body.names
        named.check_result(values, self._taken, self._body, given, self._url)
        return values if self._block.body is not None else values[RETURNED]


class _Loopback:
    """The link of a block that runs in this process."""

    def __init__(self, parts: LocalParts | None) -> None:
        self._parts = parts
        self.error: BaseException | None = None
        """What a part has raised; it belongs to the user, as it is."""

    def log(self, text: str, tags: tuple[str, ...] = ()) -> None:
        print(text)

    def progress(self, text: str, done: float, of: float | None, unit: str) -> None:
        pass

    def token(self, step: int, ids: tuple[int, ...]) -> None:
        pass

    def local(self, index: int, *payload: bytes | memoryview) -> bytearray:
        assert self._parts is not None
        try:
            return bytearray().join(self._parts.run(index, bytearray().join(payload)))
        except BaseException as error:
            self.error = error
            raise


def _run_here(
    model: Any, payload: bytes, parts: LocalParts | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    result, limits, link = BytesIO(), Limits(), _Loopback(parts)
    try:
        execute(model, payload, link, result, limits)
    except BlockFailed as failed:
        raise (link.error or error_of(failed.fault)) from None
    return container.unpack(
        result.getvalue(), most=limits.result_bytes, header_most=limits.header_bytes
    )
