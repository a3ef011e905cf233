"""A real JupyterLab on loopback, in Debian's chromium, for the browser tests.

    def test_a_cell_runs(lab: Lab) -> None:
        notebook = lab.open("notes.ipynb")
        notebook.run_all()
        assert not notebook.errors()

Everything Jupyter writes goes to a folder of the test's own, and a request that would leave this
machine is refused and remembered.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("jupyterlab")

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
PATIENCE_S = 120
LOOPBACK = {"127.0.0.1", "localhost", "::1"}

# Every cell stays in the page, nothing is fetched, and no window opens over the notebook.
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
    },
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}


class Notebook:
    """A notebook open in JupyterLab; its cells are addressed by index."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.said: list[str] = []
        """What views say on the page's console, as errors."""

    def command(self, name: str, **arguments: Any) -> None:
        """Run one of JupyterLab's commands, to its end."""
        self.page.evaluate(
            "([name, args]) => window.jupyterapp.commands.execute(name, args).then(() => null)",
            [name, arguments],
        )

    def run_all(self) -> None:
        """Run every cell and wait until the kernel has nothing more to do."""
        self.command("notebook:run-all-cells")
        self.wait_idle()

    def run(self, index: int) -> None:
        """Run one cell and wait for it."""
        self.page.evaluate(
            "index => { window.jupyterapp.shell.currentWidget.content.activeCellIndex = index; }",
            index,
        )
        self.command("notebook:run-cell")
        self.wait_idle()

    def wait_idle(self) -> None:
        """Wait until the kernel has nothing more to do."""
        self.page.wait_for_function(
            """() => {
                const panel = window.jupyterapp.shell.currentWidget;
                const cells = panel.content.widgets.filter(cell => cell.model.type === 'code');
                return panel.sessionContext.session.kernel.status === 'idle'
                    && cells.every(cell => cell.model.executionState === 'idle');
            }"""
        )

    def cells(self) -> list[dict[str, Any]]:
        """The notebook's cells as nbformat would save them, with their outputs."""
        found: list[dict[str, Any]] = self.page.evaluate(
            "() => window.jupyterapp.shell.currentWidget.content.widgets.map(c => c.model.toJSON())"
        )
        return found

    def errors(self) -> list[str]:
        """What went wrong, in cells that are not meant to."""
        return [
            "\n".join([text_of(cell["source"]), *output["traceback"]])
            for cell in self.cells()
            if "raises-exception" not in cell["metadata"].get("tags", [])
            for output in cell.get("outputs", [])
            if output["output_type"] == "error"
        ]

    def cell(self, index: int) -> Any:
        """A cell as it stands in the page."""
        return self.page.locator(".jp-Notebook .jp-Cell").nth(index)

    def paint(self, theme: str) -> None:
        """Change to JupyterLab's light or dark theme."""
        self.command("apputils:change-theme", theme=f"JupyterLab {theme.title()}")
        is_light = str(theme == "light").lower()
        self.page.wait_for_selector(f'body[data-jp-theme-light="{is_light}"]', state="attached")
        self.page.wait_for_timeout(500)  # styles load after the attribute is set

    def show(self, index: int) -> None:
        """Scroll until a cell is at the top of the page."""
        self.cell(index).evaluate("cell => cell.scrollIntoView({block: 'start'})")
        self.page.wait_for_timeout(150)

    def pictures(self, folder: Path, name: str) -> list[Path]:
        """The whole notebook from top to bottom, one screen after the other."""
        folder.mkdir(parents=True, exist_ok=True)
        scroller = self.page.locator(".jp-NotebookPanel .jp-WindowedPanel-outer")
        seen, height = scroller.evaluate("e => [e.clientHeight, e.scrollHeight]")
        taken = []
        for number, top in enumerate(range(0, height - seen // 10, int(seen * 0.95))):
            scroller.evaluate("(e, top) => e.scrollTo(0, top)", top)
            self.page.wait_for_timeout(150)
            taken.append(folder / f"{name}-{number}.png")
            self.page.screenshot(path=taken[-1])
        return taken


class Lab:
    """A page on a JupyterLab server, and what it asked of other machines."""

    def __init__(self, page: Any, address: str, token: str, root: Path) -> None:
        self.page = page
        self.root = root
        self.outside: list[str] = []
        self._address = address
        self._token = token
        page.context.route("**/*", self._gate)
        page.on("websocket", lambda socket: self._is_inside(socket.url))

    def open(self, name: str) -> Notebook:
        """Open a notebook of the server's folder, with nothing beside it, its kernel started."""
        self.page.goto(f"{self._address}/doc/tree/{name}?token={self._token}")
        self.page.wait_for_function(
            """() => {
                const panel = window.jupyterapp?.shell.currentWidget;
                return panel?.sessionContext?.session?.kernel?.status === 'idle'
                    && panel.content.widgets.length > 0;
            }"""
        )
        return Notebook(self.page)

    def _gate(self, route: Any) -> None:
        if self._is_inside(route.request.url):
            route.continue_()
        else:
            route.abort()

    def _is_inside(self, url: str) -> bool:
        parts = urlsplit(url)
        inside = parts.scheme in ("data", "blob") or parts.hostname in LOOPBACK
        if not inside:
            self.outside.append(url)
        return inside


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("Debian's chromium is not installed: apt-get install chromium")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=path, args=FLAGS, chromium_sandbox=False
        )
        yield chromium
        chromium.close()


@pytest.fixture
def lab(browser: Any, tmp_path: Path) -> Iterator[Lab]:
    """JupyterLab on a folder of the test's own: `lab.root`."""
    root = tmp_path / "notebooks"
    root.mkdir()
    port, token = free_port(), secrets.token_hex(16)
    address = f"http://127.0.0.1:{port}"
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(
            command(root, port, token), env=environment(tmp_path), stdout=log, stderr=log
        )
        try:
            wait_for(f"{address}/api", server, tmp_path / "server.log")
            context = browser.new_context(viewport={"width": 1200, "height": 1500})
            context.set_default_timeout(PATIENCE_S * 1000)
            yield Lab(context.new_page(), address, token, root)
            context.close()
        finally:
            server.terminate()  # it shuts its kernels down
            server.wait(PATIENCE_S)


def command(root: Path, port: int, token: str) -> list[str]:
    return [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        *(f"--ServerApp.root_dir={root}", "--ServerApp.ip=127.0.0.1"),
        *(f"--ServerApp.port={port}", "--ServerApp.port_retries=0"),
        *(f"--IdentityProvider.token={token}", "--LabApp.expose_app_in_browser=True"),
    ]


def environment(folder: Path) -> dict[str, str]:
    """Private folders for everything Jupyter and IPython read or write, and the settings above."""
    places = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
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


def text_of(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)
