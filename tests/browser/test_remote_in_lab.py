"""Cells on a real server in a real JupyterLab: followed, cancelled while they run, found again."""

import os
import sys
from pathlib import Path

import pytest
from widget_pages import begin, cancel, open_cells, output_of, pictures, reviewed, write

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from demo_server import demo_server

pytestmark = pytest.mark.slow

PROMPT = "'The Eiffel Tower is in the city of'"
SLOW = """i = 0
while True:
    i += 1
    if i % 20_000_000 == 0:
        tracer.log("still at it", i)
"""


@pytest.fixture(scope="module")
def remote():
    with demo_server() as found:
        yield found


def cells(url, key):
    return [
        f"%load_ext insitu\nimport insitu\nmodel = insitu.LanguageModel('demo')\n"
        f"%remote {url} {key}",
        f"%%trace model {PROMPT} --remote\nprint('from there')\n"
        "logits = model.lm_head.output.save()",
        f"%%trace model {PROMPT} --remote\nimport torch\nbig = torch.rand(1, 100, 300_000).save()",
        f"%%trace model {PROMPT} --remote --background\n{SLOW}",
        "print(tuple(logits.shape), job.phase, job.id)",
    ]


def test_a_cell_is_followed_cancelled_while_it_runs_and_found_again(lab, remote):
    url, key = remote
    notebook = open_cells(lab, cells(url, key))
    page = notebook.page
    done = notebook.cell(1).locator(".insitu-remote_log")
    done.locator("[aria-current=step]", has_text="COMPLETED").wait_for()
    done.locator(".said", has_text="from there").wait_for()
    assert "92.3 kB" in notebook.cell(1).inner_text()
    kinds = {output["output_type"] for output in notebook.cells()[2]["outputs"]}
    assert kinds == {"display_data"}  # no printed bar beside the log's own
    assert "big.half() would be 60 MB" in notebook.cell(2).inner_text()
    pictures(notebook, 1, "remote_cell")
    pictures(notebook, 2, "remote_large")
    if folder := os.environ.get("SCREENSHOTS"):
        notebook.cell(2).screenshot(path=Path(folder) / "remote_cell_whole.png")

    running = notebook.cell(3).locator(".insitu-remote_log")
    running.locator("[aria-current=step]", has_text="RUNNING").wait_for()
    running.locator(".said", has_text="still at it").first.wait_for()
    _, phase, id = output_of(notebook, 4).rsplit(maxsplit=2)
    assert phase == "RUNNING"
    notebook.command("docmanager:save")
    notebook = lab.reload()
    page = notebook.page
    running = notebook.cell(3).locator(".insitu-remote_log")
    running.locator("[aria-current=step]", has_text="RUNNING").wait_for()
    running.locator(".said", has_text="still at it").first.wait_for()

    # Another one waits for the first: its place is shown, and it is cancelled by its button, all
    # while its own cell keeps the kernel busy.
    write(notebook, 1, f"%%trace model {PROMPT} --remote\n{SLOW}")
    begin(notebook, 1)
    waiting = notebook.cell(1).locator(".insitu-remote_log")
    waiting.locator("[aria-current=step]", has_text="RUNNING").or_(
        waiting.locator("[aria-current=step]", has_text="QUEUED")
    ).first.wait_for()
    notebook.cell(1).scroll_into_view_if_needed()
    pictures(notebook, 1, "remote_busy")
    cancel(waiting)
    notebook.wait_idle()  # its code would have gone on for ever
    assert "JobLostError" in notebook.cell(1).inner_text()

    # After a restart of the kernel the first one is still there, and is taken up by its id.
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.restartKernel()")
    running.locator(".trouble", has_text="The kernel does not answer").wait_for()
    notebook.wait_idle()
    write(notebook, 0, f"%load_ext insitu\nimport insitu\n%remote {url} {key}")
    write(notebook, 1, f"job = insitu.job('{id}')\ninsitu.show(job)")
    write(notebook, 2, "dock = %jobs --remote\ndock")
    notebook.run(0)
    notebook.run(1)
    again = notebook.cell(1).locator(".insitu-remote_log")
    again.locator(".said", has_text="still at it").first.wait_for()
    notebook.run(2)
    dock = notebook.cell(2).locator(".insitu-job_dock")
    dock.locator(".job", has_text="RUNNING").wait_for()
    reviewed(notebook, 2, "remote_dock")
    cancel(again)
    dock.locator(".job", has_text="RUNNING").wait_for(state="detached")
    assert notebook.said == []
    assert lab.outside == []
