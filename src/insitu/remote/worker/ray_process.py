"""The process that speaks to Ray, as a server has it: started, waited for, cleaned up after.

link = LinkProcess(local=True)
line = await Line.over(link.end); …; link.ended(patient=True)
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GO_S = 20.0
"""So long may it take to leave a cluster and to end a head of its own."""
FAIL_S = 2.0
_FOLDER = "insitu-ray-"
_NAME_MOST = 40
"""Ray's sockets are deep inside, and a socket's path has 107 characters."""
_SECRETS = ("INSITU_SERVER_KEY", "INSITU_API_KEY", "NDIF_API_KEY")


class LinkProcess:
    """The process, and all that it has started: a session of its own.

    Args:
        local: it starts a head of its own.
    """

    def __init__(self, local: bool) -> None:
        self.folder = _new_folder()
        self.end, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-m", "insitu.remote.worker.ray_cluster"]
        with theirs:
            self.process = subprocess.Popen(
                [*command, str(theirs.fileno()), self.folder],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_environment(local),
                start_new_session=True,
            )

    def ended(self, patient: bool) -> None:
        """Wait until it is gone; end it, and what it has left, where it does not go by itself.

        Args:
            patient: it has joined a cluster, and may take a while to leave.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GO_S if patient else FAIL_S)
        until = time.monotonic() + GO_S
        while (left := _session(self.process.pid)) and time.monotonic() < until:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.poll()
            time.sleep(0.02)
        self.process.wait(GO_S)
        shutil.rmtree(self.folder, ignore_errors=True)


def _environment(local: bool) -> dict[str, str]:
    """The server's own, without its keys; who wants to speak to a head of ours needs a token."""
    kept = {name: value for name, value in os.environ.items() if name not in _SECRETS}
    own = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    if local:
        own |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.urandom(32).hex()}
        own |= {"RAY_worker_niceness": "0"}  # 15 by default: jobs would wait for everything else
        for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH"):
            kept.pop(name, None)
    return kept | own


def _new_folder() -> str:
    """A folder with a short name; those of servers that were killed are removed."""
    base = tempfile.gettempdir()
    base = base if len(base) <= _NAME_MOST else "/tmp"
    for old in Path(base).glob(f"{_FOLDER}*-*"):
        owner = old.name.removeprefix(_FOLDER).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(old, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-", dir=base)


def _session(leader: int) -> list[int]:
    """The processes of a session that still run."""
    return [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and _is_in(pid, leader)]


def _is_in(pid: str, leader: int) -> bool:
    try:
        said = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended meanwhile
        return False
    return int(said[3]) == leader and said[0] not in "ZX"
