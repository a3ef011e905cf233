"""The device process as its model process sees it: started, given jobs, listened to.

keeper = Keeper(settings)                   # it opens the model on its device
about = keeper.ready()
files = keeper.hand(message)                # what the job's process is given beside its own
keeper.heard()                              # what it says, when its socket can be read
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from insitu.errors import UsageError
from insitu.remote.worker import frames
from insitu.remote.worker.apart.shared import Segment
from insitu.remote.worker.loading import Tell
from insitu.remote.worker.specs import Settings

FILES = 3
"""That a job is given: its socket, the memory it writes to, the memory it reads."""


class OpeningError(RuntimeError):
    """The device process could not open the model; `fault` is what it said."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Keeper:
    """One device process."""

    def __init__(self, settings: Settings) -> None:
        ours, theirs = frames.control_pair()
        command = [sys.executable, "-P", "-m", "insitu.remote.worker.apart.device_process"]
        with theirs:
            self.process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        self.control = ours
        frames.send_control(ours, settings.message())

    def ready(self, tree: str, tell: Tell) -> dict[str, Any]:
        """Wait until the model is there; what is told of it.

        Args:
            tree: the digest of the modules here, which must be the same there.
            tell: hears how far it is until then.

        Raises:
            OpeningError: it cannot be opened.
        """
        while (said := self.heard()) is not None and said["said"] == "progress":
            tell(said["text"], said["done"], said["of"], said["unit"])
        if said is None:
            raise OpeningError("RuntimeError", "its process ended while it opened the model.")
        if said["said"] == "failed":
            raise OpeningError(said["kind"], said["text"])
        if said["tree"] != tree:
            raise UsageError(
                "the model has other modules on its device than on the CPU.",
                "jobs run beside a copy of it on the CPU, whose modules stand for those there.",
                "open it without the setting that changes its modules, or serve it with "
                "--trust self.",
            )
        return {"bytes": said["bytes"], "about": said["about"]}

    def hand(self, message: Mapping[str, Any]) -> tuple[int, ...]:
        """Announce a job; the files that it speaks by, to be closed when it has them.

        Raises:
            OSError: the device process is gone, or files have run out.
        """
        told = {"job": message["job"], "memory_bytes": message["limits"]["memory_bytes"]}
        with contextlib.ExitStack() as held:
            ours, theirs = map(held.enter_context, frames.control_pair())
            up = Segment.file()
            held.callback(os.close, up)
            down = Segment.file()
            held.callback(os.close, down)
            frames.send_control(self.control, told, (theirs.fileno(), down, up))
            held.pop_all()
        theirs.close()
        return ours.detach(), up, down

    def heard(self) -> dict[str, Any] | None:
        """What it says; None when it is gone."""
        try:
            got = frames.receive_control(self.control)
        except OSError:
            return None
        return None if got is None else got[0]
