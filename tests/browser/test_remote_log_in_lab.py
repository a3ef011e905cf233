"""The log of a job in a real JupyterLab: fast, searched, cancelled, and after a restart."""

import pytest
from widget_pages import begin, cancel, eventually, open_cells, output_of, pictures, reviewed, write

pytestmark = pytest.mark.slow

JOB = """
import time
from insitu.widgets import JobDock, LocalJob, Recording, RemoteLog

def work(log):
    began, n = time.monotonic(), 0
    while True:
        log(f"line {n} of a fast job", tags=("even",) if n % 2 == 0 else ("odd",))
        n += 1
        if n % 5_000 == 0:
            log(f"{n} lines", tags=("count", "warning"))
            log.progress(n, 1_000_000, "lines said")
        while n > 10_000 * (time.monotonic() - began):
            time.sleep(0.002)

job = LocalJob(work, title="ten thousand lines a second")
log = RemoteLog(job, record="run.jsonl")
log
"""
CELLS = [
    JOB,
    "def short(log):\n    log('only this', tags='odd')\n    raise ValueError('no more to say')\n"
    "dock = JobDock(job, LocalJob(short))\ndock",
    "print(log.phase, log.count > 20_000, log.dropped)",
    "import pathlib",
    "print(log.count)",
    "from insitu.widgets import Recording, RemoteLog\nRemoteLog(Recording('run.jsonl'))",
]
STATE = "window.jupyterapp.shell.currentWidget.content.widgets[3].model.executionState"
HEARD = "view => Number(view.textContent.match(/([\\d,]+) lines/)?.[1].replaceAll(',', '') ?? 0)"


def test_a_fast_log_is_followed_searched_and_cancelled(lab):
    notebook = open_cells(lab, CELLS[:5])
    page = notebook.page
    view = notebook.cell(0).locator(".insitu-remote_log")
    view.locator("[aria-current=step]", has_text="RUNNING").wait_for()

    view.scroll_into_view_if_needed()
    write(notebook, 3, "while not pathlib.Path('seen').exists(): time.sleep(0.1)")
    begin(notebook, 3)
    page.wait_for_function(f"{STATE} === 'running'")
    before = view.evaluate(HEARD)
    page.wait_for_function(
        f"([view, count]) => ({HEARD})(view) > count", arg=[view.element_handle(), before + 20_000]
    )
    assert page.evaluate(STATE) == "running"  # the lines came while that cell kept the kernel busy
    assert "the last 5,000 here" in view.inner_text()
    assert view.locator("[role=option]").count() < 60
    (lab.root / "seen").touch()
    notebook.wait_idle()
    pictures(notebook, 0, "remote_log_fast")

    view.get_by_role("searchbox").fill("5000 lines")
    view.get_by_role("button", name="count").click()
    view.locator(".said", has_text="5000 lines").first.wait_for()
    view.get_by_role("searchbox").fill("")
    view.get_by_role("button", name="count").click()
    view.get_by_role("button", name="Follow").wait_for()
    view.get_by_role("listbox").hover()
    page.mouse.wheel(0, -300)
    view.get_by_role("button", name="new").wait_for()
    assert output_of(notebook, 2).startswith("RUNNING True ")

    cancel(view)
    assert output_of(notebook, 2).startswith("CANCELLED True ")

    dock = notebook.cell(1).locator(".insitu-job_dock")
    dock.locator(".job", has_text="short").click()
    dock.locator(".said", has_text="only this").wait_for()
    failed = dock.locator(".failed")  # both jobs in the list, and the phase
    assert eventually(notebook, failed.count, 2 + 1) == 2 + 1
    assert output_of(notebook, 4).strip().isdigit()
    notebook.cell(1).locator(".insitu-job_dock").scroll_into_view_if_needed()
    assert notebook.said == []
    assert lab.outside == []


def test_a_log_survives_a_reload_and_is_shown_again_after_a_restart(lab):
    notebook = open_cells(lab, CELLS)
    page = notebook.page
    page.locator(".insitu-remote_log .said").first.wait_for()
    notebook.command("docmanager:save")
    notebook = lab.reload()
    view = notebook.cell(0).locator(".insitu-remote_log")
    view.locator("[aria-current=step]", has_text="RUNNING").wait_for()
    view.locator(".said", has_text="of a fast job").first.wait_for()
    listed = int(output_of(notebook, 4))
    page.wait_for_function(
        f"([view, count]) => ({HEARD})(view) > count", arg=[view.element_handle(), listed]
    )

    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.restartKernel()")
    view.locator(".trouble", has_text="The kernel does not answer").wait_for()
    assert view.locator(".said").count() > 5
    notebook.wait_idle()
    notebook.run(5)
    again = notebook.cell(5).locator(".insitu-remote_log")
    again.locator("[aria-current=step]", has_text="LOST").wait_for()
    again.locator(".said", has_text="The kernel ended while the job ran.").wait_for()
    again.get_by_role("button", name="even").click()
    reviewed(notebook, 5, "remote_log_recorded")
    assert lab.outside == []
