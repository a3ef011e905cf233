"""A job as a cell's last line shows what it said; the oracle is the twin of its log."""

import json

import pytest

import insitu
from insitu.engine import opening
from insitu.errors import MissingPackageError
from insitu.events import Channel, JobEvent
from insitu.remote.client.job import RemoteJob
from insitu.widgets import LocalJob, Recording, RemoteLog


def said(log):
    log("<script>alert(1)</script>", tags="train")
    log.progress(3, 9, "steps")
    return 1


def test_a_local_job_is_told_as_its_log_is():
    job = LocalJob(said, title="a <b>job")
    assert job.result(10) == 1
    html = job._repr_html_()
    assert html == RemoteLog(job).html()
    assert "&lt;script&gt;alert(1)" in html
    assert "<script" not in html
    assert "COMPLETED" in html


def test_a_recording_is_told_as_far_as_it_was_played(tmp_path):
    events = [JobEvent("a", "status", phase="RUNNING", time=1.0), JobEvent("a", text="x", time=2.0)]
    path = tmp_path / "run.jsonl"
    path.write_text("".join(json.dumps(it.as_dict()) + "\n" for it in events))
    recording = Recording(path)
    assert recording._repr_html_() == RemoteLog(recording).html()
    assert "RUNNING" in recording._repr_html_()


class Sent:
    """As much of a job on a server as its HTML needs."""

    id, title = "r1", "trace of gpt2"
    _repr_html_ = RemoteJob._repr_html_

    def __init__(self):
        self.channel = Channel()
        self.listen = self.channel.listen


def test_a_job_on_a_server_is_told_so_too_and_as_text_where_there_are_no_views(monkeypatch):
    job = Sent()
    job.channel.tell(JobEvent("r1", "status", phase="QUEUED", time=1.0))
    assert "trace of gpt2 (r1): QUEUED" in job._repr_html_()
    assert "trace of gpt2 (r1): QUEUED" in insitu.show(job).text()

    def missing(*_):
        raise MissingPackageError("a view could not be opened.", "why.", "next.")

    monkeypatch.setattr("insitu.remote.client.job.opened", missing)
    assert job._repr_html_() is None
    assert "job_html" in opening._places


@pytest.mark.parametrize("times", [0, 40])
def test_a_long_log_is_told_by_its_end(times):
    job = Sent()
    for number in range(times):
        job.channel.tell(JobEvent("r1", text=f"line {number}", time=float(number)))
    html = job._repr_html_()
    assert ("10 lines before" in html) == (times == 40)
    assert ("line 39" in html, "line 9<" in html) == (times == 40, False)
