"""What client, server and workers say to each other, and the bounds on it.

Task("5f…", "demo", request=Path(…), result=Path(…), limits=Limits())
Log("tensor(5.4688)")                     # a worker tells; the server numbers, keeps and pushes
Ended("COMPLETED")
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

VERSION = 1
"""Of the protocol; sent as `X-Protocol`."""

MEDIA_TYPE = "application/x-insitu"
EVENTS_TYPE = "application/x-insitu-events"
"""Server-sent events, with the values of a `local()` part behind the event that tells of it."""

State = Literal[
    "RECEIVED", "APPROVED", "QUEUED", "LOADING", "RUNNING",
    "COMPLETED", "ERROR", "CANCELLED", "TIMEOUT", "LOST",
]  # fmt: skip
ENDS = ("COMPLETED", "ERROR", "CANCELLED", "TIMEOUT", "LOST")
TEXTS: dict[str, str] = {
    "RECEIVED": "Your job has been received and is waiting approval.",
    "APPROVED": "Your job was approved and is waiting to be run.",
    "QUEUED": "Your job waits for others to end.",
    "LOADING": "The model is being loaded.",
    "RUNNING": "Your job has started running.",
    "COMPLETED": "Your job has been completed.",
    "CANCELLED": "Your job was cancelled.",
}
"""What a status says when it has nothing of its own to say."""

Trust = Literal["self", "team", "public"]


@dataclass(frozen=True)
class Limits:
    """What one job may take; all of it stands in `/v1/info`."""

    request_bytes: int = 64 * 2**20
    unpacked_bytes: int = 2**30
    """Of a request, when it has been inflated."""
    result_bytes: int = 2 * 2**30
    local_bytes: int = 256 * 2**20
    """One way of one `local()` block."""
    header_bytes: int = 4 * 2**20
    """The JSON of a container."""
    log_lines: int = 10_000
    line_chars: int = 4_000
    events: int = 100_000
    told_bytes: int = 64 * 2**20
    """Of all events of a job, as they are kept."""
    loading_s: float = 900.0
    """Until the job's model is loaded; it does not count as wall time."""
    wall_s: float = 300.0
    local_s: float = 60.0
    """One `local()` block, as the client may take for it; they do not count as wall time."""
    local_total_s: float = 120.0
    memory_bytes: int = 8 * 2**30
    queue: int = 100
    queue_per_user: int = 10
    kept_bytes: int = 8 * 2**30
    """Of one user's results; the oldest go first. Less on a disk with little room."""
    kept_rows_bytes: int = 2**30
    """Of what one user's jobs have told; the oldest jobs are forgotten first."""


@dataclass(frozen=True)
class Task:
    """One job, as a worker is given it."""

    id: str
    model: str
    """The server's own name of it."""
    request: Path
    """The container that the client sent."""
    result: Path
    """Where the container of the result is to be written."""
    limits: Limits


# What a worker tells of a job -------------------------------------------------------------------


@dataclass(frozen=True)
class Status:
    """A phase begins."""

    phase: State
    text: str = ""


@dataclass(frozen=True)
class Log:
    """A line of the block's: `print`, `tracer.log`."""

    text: str
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Progress:
    """How far something is."""

    text: str
    done: float
    of: float | None = None
    unit: str = ""


@dataclass(frozen=True)
class Token:
    """New tokens of a generation: one id for each row."""

    step: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Local:
    """The block has come to a `local()` part; it waits for `answer(job, number, …)`."""

    number: int
    """Counts the exchanges of a job, from 0."""
    index: int
    """Which of the parts that the client kept."""
    payload: bytes | bytearray
    """A container of the values it needs."""


Told = Status | Log | Progress | Token | Local


@dataclass(frozen=True)
class Fault:
    """Why a job failed, as plain words."""

    kind: str
    """The class of the error: `IndexError`, `insitu.OutOfOrderError`."""
    text: str
    """Its message; three lines where it is one of ours."""
    place: tuple[tuple[str, int, str], ...] = ()
    """File, line and function of the user's own frames, the innermost last."""


@dataclass(frozen=True)
class Ended:
    """How a job ended."""

    phase: Literal["COMPLETED", "ERROR", "CANCELLED", "TIMEOUT", "LOST"]
    fault: Fault | None = None


@dataclass(frozen=True)
class ModelState:
    """A model that a server has or can load."""

    name: str
    state: Literal["absent", "loading", "ready", "failed"]
    known_as: tuple[str, ...] = ()
    """Further names under which clients may ask for it."""
    kind: str = "LanguageModel"
    bytes: int = 0
    jobs: int = 0
    """Running now."""
    about: dict[str, Any] = field(default_factory=dict)


class Workers(Protocol):
    """Where jobs run: processes on this machine, or Ray. Lives in the server's event loop."""

    async def start(self) -> None:
        """Be ready to take tasks."""

    async def stop(self) -> None:
        """End everything; nothing stays behind."""

    def models(self) -> list[ModelState]:
        """Every model that tasks may name."""

    def room(self, model: str) -> int:
        """How many tasks more may run on a model now."""

    async def run(self, task: Task, told: Callable[[Told], None]) -> Ended:
        """Run a task to its end, whatever happens to it; `told` is called as it speaks."""

    async def cancel(self, job: str) -> None:
        """Make a running task's `run` return CANCELLED within two seconds."""

    async def answer(self, job: str, number: int, payload: bytes | bytearray) -> None:
        """The values that a `local()` part has given back."""
