"""One JupyterLab on loopback for all browser tests; everything it writes goes to one folder.

server = Server.started(folder)
server.root, server.address, server.token
server.end_sessions("a_test")         # the kernels of notebooks in that folder
server.stop()
"""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

PATIENCE_S = int(os.environ.get("BROWSER_PATIENCE", "120"))

# Every cell stays in the page, nothing is fetched, and no window opens over the notebook.
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
    },
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}


@dataclass
class Server:
    """JupyterLab as a process of its own."""

    address: str
    token: str
    root: Path
    process: subprocess.Popen[bytes]
    sockets: TemporaryDirectory[str]
    endings: list[Thread] = field(default_factory=list)

    @classmethod
    def started(cls, folder: Path) -> "Server":
        """One that answers already."""
        root = folder / "notebooks"
        root.mkdir(parents=True)
        sockets = TemporaryDirectory(prefix="lab-")  # their paths have to be short
        port, token = free_port(), secrets.token_hex(16)
        address, log = f"http://127.0.0.1:{port}", folder / "server.log"
        with log.open("w") as said:
            process = subprocess.Popen(
                command(root, port, token),
                env={**environment(folder), "JUPYTER_RUNTIME_DIR": sockets.name},
                stdout=said,
                stderr=said,
            )
        try:
            wait_for(f"{address}/api", process, log)
        except BaseException:
            process.kill()
            process.wait()
            sockets.cleanup()
            raise
        return cls(address, token, root, process, sockets)

    def api(self, path: str, method: str = "GET") -> Any:
        """What Jupyter's REST interface answers."""
        request = urllib.request.Request(
            f"{self.address}/api/{path}",
            method=method,
            headers={"Authorization": f"token {self.token}"},
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return json.loads(answer.read() or "null")

    def end_sessions(self, folder: str) -> None:
        """Have the kernels of a folder's notebooks shut down, without waiting for their end."""
        for session in self.api("sessions"):
            if session["path"].startswith(f"{folder}/"):
                at = f"sessions/{session['id']}"
                self.endings.append(Thread(target=self.api, args=(at, "DELETE")))
                self.endings[-1].start()

    def stop(self) -> None:
        """End it; it shuts its kernels down."""
        for ending in self.endings:
            ending.join()
        self.process.terminate()
        self.process.wait(PATIENCE_S)
        self.sockets.cleanup()


def command(root: Path, port: int, token: str) -> list[str]:
    return [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        *(f"--ServerApp.root_dir={root}", "--ServerApp.ip=127.0.0.1"),
        *(f"--ServerApp.port={port}", "--ServerApp.port_retries=0"),
        *(f"--IdentityProvider.token={token}", "--LabApp.expose_app_in_browser=True"),
        "--KernelManager.transport=ipc",  # two servers choose one port for kernels now and then
    ]


def environment(folder: Path) -> dict[str, str]:
    """Private folders for everything Jupyter and IPython read or write, and the settings above."""
    places = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    for plugin, chosen in SETTINGS.items():
        package, name = plugin.split(":")
        file = folder / "settings" / package / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(chosen))
    private = {name: str(folder / place) for name, place in places.items()}
    return {**os.environ, **private, "HF_HUB_OFFLINE": "1"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server answers; one that ended says why."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")
