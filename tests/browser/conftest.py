"""A real JupyterLab on loopback, in Debian's chromium, for the browser tests.

    def test_a_cell_runs(lab: Lab) -> None:
        notebook = lab.open("notes.ipynb")
        notebook.run_all()
        assert not notebook.errors()

All tests share one server and one browser; each has a folder, a page and kernels of its own.
Chromium reaches nothing but this machine, and what a page asks of another is remembered.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("jupyterlab")
pytest.register_assert_rewrite("widget_pages", "reviewed")  # a failure there tells what was seen

from lab_pages import Lab  # noqa: E402
from lab_server import Server  # noqa: E402

_FAILED = pytest.StashKey[bool]()
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]


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


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """JupyterLab for the whole run."""
    started = Server.started(tmp_path_factory.mktemp("lab"))
    yield started
    started.stop()


@pytest.fixture(scope="session")
def labs(browser: Any, server: Server) -> Callable[[str], Lab]:
    """Opens pages on the server, each with a folder of its own."""
    return lambda name: Lab(browser, server, re.sub(r"\W+", "-", name))


@pytest.fixture
def lab(labs: Callable[[str], Lab], request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A page on JupyterLab, and a folder of the test's own: `lab.root`."""
    page = labs(request.node.name)
    yield page
    if request.node.stash.get(_FAILED, False):
        print(page.told())
    page.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    """Remember a failure, for the page to be told of."""
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report
