"""A page on JupyterLab and a notebook in it, as a test drives them."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lab_server import PATIENCE_S, Server

LOOPBACK = {"127.0.0.1", "localhost", "::1"}

WIDGETS_SHOWN = """() => window.jupyterapp.shell.currentWidget.content.widgets.every(cell => {
    const outputs = [...cell.node.querySelectorAll('.jp-OutputArea-output')];
    const models = cell.model.toJSON().outputs ?? [];
    const widgets = models.filter(it => it.data?.['application/vnd.jupyter.widget-view+json']);
    return outputs.length >= widgets.length
        && !outputs.some(it => it.textContent.startsWith('Loading widget...'));
})"""
PYTHON = """async code => {
    const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
    const future = kernel.requestExecute({ code, store_history: false });
    let [said, wrong] = ['', ''];
    future.onIOPub = ({ header, content }) => {
        if (header.msg_type === 'stream') said += content.text;
        if (header.msg_type === 'error') wrong += content.traceback.join('\\n');
    };
    await future.done;
    return [said, wrong];
}"""


class Notebook:
    """A notebook open in JupyterLab; its cells are addressed by index."""

    def __init__(self, page: Any, said: list[str]) -> None:
        self.page = page
        self.said = said
        """What went wrong in the page: errors on its console, exceptions that nobody caught."""

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

    def python(self, code: str) -> str:
        """Run a program in the kernel, beside the cells; what it prints."""
        said, wrong = self.page.evaluate(PYTHON, code)
        assert not wrong, wrong
        return str(said)

    def wait_idle(self) -> None:
        """Wait until the kernel has nothing more to do, and the widgets it showed are there.

        A view that a cell has filled is shown anew at the cell's end, which the page begins before
        it hears that the kernel is idle, and ends some time after.
        """
        self.page.wait_for_function(
            """() => {
                const panel = window.jupyterapp.shell.currentWidget;
                const cells = panel.content.widgets.filter(cell => cell.model.type === 'code');
                return panel.sessionContext.session.kernel.status === 'idle'
                    && cells.every(cell => cell.model.executionState === 'idle')
                    && ![...panel.node.querySelectorAll('.jp-OutputArea-output')].some(
                        output => output.textContent.startsWith('Loading widget...'));
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

    def __init__(self, browser: Any, server: Server, name: str) -> None:
        self.server = server
        self.name = name
        self.root = server.root / name
        self.root.mkdir()
        self.outside: list[str] = []
        self._said: list[str] = []
        self._context = browser.new_context(viewport={"width": 1200, "height": 1500})
        self._context.set_default_timeout(PATIENCE_S * 1000)
        self._context.on("request", lambda asked: self._note(asked.url))
        self.page = self._context.new_page()
        self.page.on("websocket", lambda socket: self._note(socket.url))
        self.page.on("console", lambda said: said.type == "error" and self._heard(said))
        self.page.on("pageerror", lambda error: self._said.append(f"uncaught: {error}"))

    def open(self, name: str) -> Notebook:
        """Open a notebook of the test's folder, with nothing beside it, its kernel started."""
        at = f"{self.server.address}/doc/workspaces/{self.name}/tree/{self.name}/{name}"
        self.page.goto(f"{at}?token={self.server.token}")
        return self.wait_open()

    def reload(self) -> Notebook:
        """Load the page again, and wait until the notebook is there, its widgets too.

        ipywidgets looks for a widget's model for two seconds, and not once more after its last
        nap. A model that comes in that tenth of a second is said to be missing for good
        (`get_model` in jupyterlab-manager 5.0); whoever sees that loads the page once more.
        """
        for _ in range(3):
            self.page.reload()
            notebook = self.wait_open()
            self.page.wait_for_function(WIDGETS_SHOWN)
            if self.page.get_by_text("Error displaying widget: model not found").count() == 0:
                break
            print("ipywidgets has missed a model that came; the page is loaded once more")
        return notebook

    def wait_open(self) -> Notebook:
        """The notebook, once it and its kernel are there."""
        self.page.wait_for_function(
            """() => {
                const panel = window.jupyterapp?.shell.currentWidget;
                return panel?.sessionContext?.session?.kernel?.connectionStatus === 'connected'
                    && ['idle', 'busy'].includes(panel.sessionContext.session.kernel.status)
                    && panel.content.widgets.length > 0;
            }"""
        )
        self._said.clear()  # what JupyterLab says of itself while it loads
        return Notebook(self.page, self._said)

    def told(self) -> str:
        """What the page shows and has said, for whoever reads why a test failed."""
        shown = self.page.locator("body").inner_text()
        picture = self.server.root / f"{self.name}.png"
        self.page.screenshot(path=picture)
        return "\n".join([f"THE PAGE ({picture})", shown, "ITS CONSOLE", *self._said])

    def close(self) -> None:
        """Close the page and end its kernels."""
        self._context.close()
        self.server.end_sessions(self.name)

    def _heard(self, said: Any) -> None:
        at = said.location or {}
        self._said.append(f"{said.text} ({at.get('url', '')})")

    def _note(self, url: str) -> None:
        """Chromium resolves no name but loopback's; a request for another is remembered."""
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob") and parts.hostname not in LOOPBACK:
            self.outside.append(url)


def text_of(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)
