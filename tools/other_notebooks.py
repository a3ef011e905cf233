"""Every widget, once, in other notebooks than JupyterLab: Notebook 7 and marimo, in chromium.

python tools/other_notebooks.py                    # both; their packages go to .venv-other
python tools/other_notebooks.py --only marimo --pictures /tmp/marimo

Prints a row for each widget and front end: whether it opened, was used and answered, what trouble
it showed, and in Notebook 7 whether it stands after a reload and says that its kernel has died;
below them what was wrong in the page, and what it asked of other machines. The cells and what is
clicked are those of tests/browser/test_every_widget_in_lab.py; a widget that cannot be there has
its reason.

The packages of the two are put into an environment of their own, which sees this one's: nothing is
installed here.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import venv
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path += [str(ROOT / "tests"), str(ROOT / "tests/browser")]

import nbformat  # noqa: E402
from lab_server import environment, free_port, wait_for  # noqa: E402
from playwright.sync_api import Error, sync_playwright  # noqa: E402
from test_every_widget_in_lab import CELLS, CHOICES, WIDGETS  # noqa: E402

PACKAGES = ("notebook", "marimo")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]
PATIENCE_MS = 120_000
SHOWN_MS = 30_000
GONE = "The kernel does not answer"
HOSTS_OWN = ("404", "chema", "load settings")
"""In what Notebook says of settings it does not find, its own beside JupyterLab's environment."""
ABSENT = {"marimo": {"lint_fixes": "no `%%trace`, from which it comes"}}
"""Widgets that a front end cannot have, and why."""
COLUMNS = ("widget", "front end", "opens", "used", "after a reload", "dead kernel", "trouble shown")
READY = """() => {
    const kernel = window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel;
    return kernel?.connectionStatus === 'connected' && kernel.status === 'idle';
}"""
RAN = """() => {
    const panel = window.jupyterapp.shell.currentWidget;
    return panel.sessionContext.session.kernel.status === 'idle'
        && panel.content.widgets.filter(cell => cell.model.type === 'code')
            .every(cell => cell.model.executionState === 'idle');
}"""
KILL = """() => {
    const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
    kernel.requestExecute({ code: 'import os, signal; os.kill(os.getpid(), signal.SIGKILL)' });
}"""


@dataclass
class Row:
    """How one widget fared in one front end."""

    opens: str = "no"
    used: str = "–"
    reloaded: str = "–"
    dead: str = "–"
    trouble: str = ""


@dataclass
class Tried:
    """One front end: its widgets, and what else there was in its page."""

    name: str
    rows: dict[str, Row] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)


def main() -> None:
    """Try what was asked for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=sorted(TRIED), help="one front end alone")
    parser.add_argument("--env", type=Path, default=ROOT / ".venv-other", help="where they are")
    parser.add_argument("--pictures", type=Path, help="a folder for a picture of each widget")
    asked = parser.parse_args()
    python = prepared(asked.env)
    found = []
    for name, tries in TRIED.items():
        if asked.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                found.append(tries(python, Path(folder), asked.pictures))
    print(table(found))


def prepared(folder: Path) -> Path:
    """The Python of an environment that has the front ends, and sees this one's packages."""
    python = folder / "bin/python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        site = next(folder.glob("lib/python*/site-packages"))
        here = Path(nbformat.__file__).parent.parent
        (site / "beside.pth").write_text(f"import site; site.addsitedir({str(here)!r})\n")
    if any(said(python, package) == "" for package in PACKAGES):
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def said(python: Path, package: str) -> str:
    """The version of a package in an environment; empty where it is not."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    ran = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return ran.stdout.strip()


def table(found: list[Tried]) -> str:
    """What was found as a table, and what went wrong beside it."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    for tried in found:
        for widget, row in tried.rows.items():
            cells = (widget, tried.name, row.opens, row.used, row.reloaded, row.dead, row.trouble)
            lines.append(f"| {' | '.join(it.replace('|', '/') for it in cells)} |")
    lines += [""]
    for tried in found:
        lines.append(f"{tried.name}: asked of other machines: {sorted(set(tried.outside)) or 0}")
        lines.append(f"{tried.name}: wrong in its page: {tried.wrong or 0}")
    lines.append(f"insitu {version('insitu')}, anywidget {version('anywidget')}, chromium")
    return "\n".join(lines)


# A page -------------------------------------------------------------------------------------------


def in_page(
    command: list[str], env: dict[str, str], log: Path, health: str, act: Callable[[Any], None],
    tried: Tried,
) -> None:  # fmt: skip
    """Have a server started, and something done in a page of chromium; then both end."""
    with log.open("w") as written:
        server = subprocess.Popen(command, env=env, stdout=written, stderr=written)
    try:
        wait_for(health, server, log)
        with sync_playwright() as playwright:
            path = shutil.which("chromium")
            browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
            page = browser.new_page(viewport={"width": 1200, "height": 1500})
            page.set_default_timeout(PATIENCE_MS)
            page.on("request", lambda asked: _note(asked.url, tried))
            page.on("console", lambda it: it.type == "error" and tried.wrong.append(it.text[:200]))
            page.on("pageerror", lambda it: tried.wrong.append(f"uncaught: {str(it)[:200]}"))
            act(page)
            browser.close()
    finally:
        server.terminate()
        server.wait(60)


def _note(url: str, tried: Tried) -> None:
    if "127.0.0.1" not in url and not url.startswith(("data:", "blob:")):
        tried.outside.append(url)


def use(page: Any, name: str, pictures: Path | None) -> Row:
    """Look at a widget, and click in it what its test in JupyterLab clicks."""
    view = page.locator(f".insitu-{name}").first
    row = Row()
    try:
        view.wait_for(timeout=SHOWN_MS)
    except Error:
        return row
    row.opens = "yes"
    view.scroll_into_view_if_needed()
    try:
        if name in CHOICES:
            view.locator(CHOICES[name]).first.click(timeout=SHOWN_MS)
        page.wait_for_function(
            "view => !view.closest('[data-asking]')", arg=view.element_handle(), timeout=SHOWN_MS
        )
        row.used = "clicked" if name in CHOICES else "looked at"
    except Error as error:
        row.used = f"no: {str(error).splitlines()[0][:80]}"
    page.wait_for_timeout(500)
    row.trouble = "; ".join(it.splitlines()[0] for it in view.locator(".trouble").all_inner_texts())
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        view.screenshot(path=pictures / f"{name}.png")
    return row


# Notebook 7 ---------------------------------------------------------------------------------------


def notebook7(python: Path, folder: Path, pictures: Path | None) -> Tried:
    """Every widget in Notebook 7: used, its page loaded again, its kernel killed."""
    tried = Tried(f"Notebook {said(python, 'notebook')}")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(it) for it in CELLS.values()])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    root = folder / "notebooks"
    root.mkdir()
    nbformat.write(book, root / "views.ipynb")
    port, here = free_port(), Path(sys.prefix) / "share/jupyter"
    command = [
        *(str(python), "-m", "notebook", "--no-browser", "--allow-root"),
        *(f"--ServerApp.root_dir={root}", "--ServerApp.ip=127.0.0.1", "--IdentityProvider.token="),
        *(f"--ServerApp.port={port}", "--JupyterNotebookApp.expose_app_in_browser=True"),
    ]
    both = f"{here}:{python.parent.parent / 'share/jupyter'}"
    env = {**environment(folder), "JUPYTER_PATH": both, "JUPYTERLAB_DIR": str(here / "lab")}

    def act(page: Any) -> None:
        page.goto(f"http://127.0.0.1:{port}/notebooks/views.ipynb")
        page.wait_for_function(READY)
        tried.wrong.clear()  # what Notebook says of itself while it loads
        _command(page, "notebook:run-all-cells")
        page.wait_for_function(RAN)
        tried.rows |= {name: use(page, name, pictures) for name in WIDGETS}
        _command(page, "docmanager:save")
        page.reload()
        page.wait_for_function(READY)
        tried.wrong[:] = [it for it in tried.wrong if not any(word in it for word in HOSTS_OWN)]
        for name, row in tried.rows.items():
            row.reloaded = "stands" if _is_there(page, f".insitu-{name}") else "is gone"
        page.evaluate(KILL)
        page.locator(".jp-Dialog button").first.click()
        for name, row in tried.rows.items():
            says = _is_there(page, f".insitu-{name} .trouble:has-text('{GONE}')")
            row.dead = "says so" if says else "is silent"

    in_page(command, env, folder / "server.log", f"http://127.0.0.1:{port}/api", act, tried)
    return tried


def _command(page: Any, name: str) -> None:
    page.evaluate("name => window.jupyterapp.commands.execute(name).then(() => null)", name)


def _is_there(page: Any, selector: str) -> bool:
    try:
        page.locator(selector).first.wait_for(timeout=SHOWN_MS, state="attached")
    except Error:
        return False
    return True


# marimo -------------------------------------------------------------------------------------------


def marimo(python: Path, folder: Path, pictures: Path | None) -> Tried:
    """Every widget in a marimo notebook that is run as an app."""
    name = f"marimo {said(python, 'marimo')}, `marimo run`"
    tried, absent = Tried(name), ABSENT["marimo"]
    shown = {name: code for name, code in CELLS.items() if name not in absent}
    (folder / "views.py").write_text(_as_marimo(shown))
    port, home = free_port(), folder / "home"
    home.mkdir()
    command = [
        *(str(python), "-m", "marimo", "run", str(folder / "views.py"), "--headless"),
        *("--no-token", "--host", "127.0.0.1", "--port", str(port)),
    ]
    env = {**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": str(home), "HF_HUB_OFFLINE": "1"}

    def act(page: Any) -> None:
        page.goto(f"http://127.0.0.1:{port}/")
        last = list(shown)[-1]
        _is_there(page, f".insitu-{last}") or page.wait_for_timeout(SHOWN_MS)
        for name in WIDGETS:
            if name in absent:
                tried.rows[name] = Row(opens=f"no: {absent[name]}")
            else:
                tried.rows[name] = use(page, name, pictures)

    in_page(command, env, folder / "server.log", f"http://127.0.0.1:{port}/health", act, tried)
    return tried


def _as_marimo(cells: dict[str, str]) -> str:
    """Cells as a marimo file; it finds out itself which cell needs whose names."""
    lines = ["import marimo", "", "app = marimo.App()", ""]
    for code in cells.values():
        body = "\n".join(it for it in code.strip().splitlines() if not it.startswith("%"))
        lines += ["", "@app.cell", "def _():", textwrap.indent(body, "    "), "    return", ""]
    return "\n".join([*lines, "", 'if __name__ == "__main__":', "    app.run()", ""])


TRIED: dict[str, Callable[[Path, Path, Path | None], Tried]] = {
    "notebook7": notebook7,
    "marimo": marimo,
}

if __name__ == "__main__":
    main()
