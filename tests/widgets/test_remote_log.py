"""Logs of jobs: events in, lines and phases out, whatever a job says and however fast."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from asking import ask

import insitu
from insitu.errors import UsageError
from insitu.widgets import JobDock, JobEvent, LocalJob, Recording, RemoteLog, local_job
from insitu.widgets import remote_log as module
from insitu.widgets.batches import Batches
from insitu.widgets.job_record import JobRecord, packed

SAMPLES = Path(__file__).parents[2] / "labextension" / "samples"


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    deadline = time.monotonic() + 5
    while any(t.name.startswith("insitu-") for t in threading.enumerate()):
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.01)


def wait_until(true):
    deadline = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def remote(job="270a6e4d"):
    """What a server says of a job, as the users of one know it."""
    said = "Your job has been received and is waiting approval."
    yield JobEvent(job, "status", said, "RECEIVED", time=100.0)
    yield JobEvent(job, "status", "Your job was approved.", "APPROVED", time=101.3)
    yield JobEvent(job, "status", "Your job waits for others.", "QUEUED", time=101.5)
    yield JobEvent(job, "queue", done=3, of=9, time=102.0)
    yield JobEvent(job, "status", "Your job has started running.", "RUNNING", time=108.0)
    yield JobEvent(job, text="loss 0.69", tags=("train",), time=109.0)
    yield JobEvent(job, text="loss 0.31 ", tags=("train", "lens"), time=110.0)
    yield JobEvent(job, text="a value is NaN", tags=("warning",), time=110.5)
    yield JobEvent(job, text="Traceback:\n  line 3", tags=("error",), time=111.0)
    yield JobEvent(
        job, "progress", "Downloading result", done=257e3, of=514e3, unit="bytes", time=111.5
    )


# A record -----------------------------------------------------------------------------------------


def test_the_sample_is_what_python_sends():
    record = JobRecord("270a6e4d", "logit lens")
    for event in remote():
        record.hear(event)
    state = {**record.state(), "cancel": "can", "now": 112.0}
    made = {"state": state, "batch": packed(*record.since(0, 100))}
    file = SAMPLES / "remote_log.json"
    if os.environ.get("WRITE_SAMPLES"):
        file.write_text(json.dumps(made, indent=1) + "\n")
    assert json.loads(file.read_text()) == made


def test_a_place_in_the_queue_is_forgotten_when_the_job_runs():
    record, events = JobRecord("270a6e4d"), remote()
    for _ in range(4):
        record.hear(next(events))
    assert record.state()["queue"] == [3, 9]
    record.hear(next(events))
    assert record.state()["queue"] is None
    assert record.phase == "RUNNING"


def test_a_phase_that_is_said_again_is_one_phase():
    record = JobRecord("a")
    for when in (1.0, 2.0):
        record.hear(JobEvent("a", "status", phase="RUNNING", time=when))
    assert record.state()["phases"] == [["RUNNING", 1.0, ""]]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", [""]),
        ("one\ntwo\n", ["one", "two"]),
        ("one\r\ntwo", ["one", "two"]),
        ("10%\r50%\r100%", ["100%"]),
        ("\x1b[31mred\x1b[0m", ["red"]),
        ("漢字 \u202e <b>", ["漢字 \u202e <b>"]),
        ("x" * 5_000, ["x" * 4_000 + "… (1000 more)"]),
    ],
)
def test_a_line_is_kept_as_a_terminal_would_leave_it(text, lines):
    record = JobRecord("a")
    record.hear(JobEvent("a", text=text))
    assert [line.text for line in record.since(0, 10)[1]] == lines


def test_the_first_lines_of_a_long_log_are_forgotten_and_counted():
    record = JobRecord("a")
    record.hear(JobEvent("a", text="\n".join(map(str, range(60_000)))))
    assert (record.heard, record.forgotten) == (60_000, 10_000)
    first, lines = record.since(59_990, most=4)
    assert (first, [line.text for line in lines]) == (59_996, ["59996", "59997", "59998", "59999"])
    assert record.since(0, 100_000)[0] == 10_000
    assert record.since(60_000, 10) == (60_000, [])


# Events -------------------------------------------------------------------------------------------


def test_an_event_survives_json():
    for event in remote():
        assert JobEvent.of_dict(json.loads(json.dumps(event.as_dict()))) == event


@pytest.mark.parametrize(
    "told",
    [
        *(None, [], {}, {"job": 3}, {"job": "a", "kind": "explode"}, {"job": "a", "text": 5}),
        *({"job": "a", "tags": "x"}, {"job": "a", "tags": [1]}, {"job": "a", "done": "1"}),
        *({"job": "a", "time": float("nan")}, {"job": "a", "of": True}),
    ],
)
def test_what_is_no_event_is_refused(told):
    with pytest.raises(ValueError):
        JobEvent.of_dict(told)


# The log ------------------------------------------------------------------------------------------


def test_a_log_shows_a_job_and_its_twins_tell_the_same():
    log = RemoteLog(title="logit lens")
    log.feed(*remote())
    assert log.phase == "RUNNING"
    assert log.lines[-2:] == ["Traceback:", "  line 3"]
    text = log.text()
    assert text.splitlines()[0] == "logit lens (270a6e4d): RUNNING"
    assert "RECEIVED +0.000s → APPROVED +1.300s → QUEUED +1.500s → RUNNING +8.000s" in text
    assert "Downloading result: 257 kB of 514 kB (50%)" in text
    assert text == repr(log)
    log.feed(JobEvent("270a6e4d", text="<script>alert(1)</script>"))
    assert "<script" not in log.html()
    assert log.html() == log.html()
    log.close()


def test_events_of_another_job_are_left_out():
    log = RemoteLog()
    log.feed(JobEvent("a", text="mine"), JobEvent("b", text="not mine"))
    assert log.lines == ["mine"]


def test_ten_thousand_lines_a_second_reach_the_view_in_few_messages():
    log, sent = RemoteLog(), []
    log.send = lambda content, buffers=None: sent.append(content["lines"])
    began = time.monotonic()
    for n in range(10_000):
        log.feed(JobEvent("a", text=f"line {n}", time=1.0))
        while time.monotonic() - began < n / 10_000:
            time.sleep(0.001)
    wait_until(lambda: sent and sent[-1]["texts"][-1] == "line 9999")
    assert len(sent) <= 25
    assert log.count == sum(len(batch["texts"]) for batch in sent) + log.dropped == 10_000


def test_what_comes_too_fast_is_dropped_from_the_view_and_kept_in_python():
    log, sent = RemoteLog(), []
    log.send = lambda content, buffers=None: sent.append(content["lines"])
    log.feed(JobEvent("a", text="\n".join(map(str, range(30_000))), time=1.0))
    wait_until(lambda: sent)
    assert sent[0]["first"] == log.dropped == 30_000 - module.SENT_MAX
    assert len(log.lines) == 30_000
    content, (file,) = ask(log, "all")
    assert content["value"] == {"lines": 30_000, "forgotten": 0}
    assert file.decode().splitlines()[-1] == "1970-01-01T00:00:01.000Z  29999"


def test_a_view_that_opens_later_is_given_the_tail():
    log = RemoteLog()
    log.feed(JobEvent("a", text="\n".join(map(str, range(6_000))), tags=("x",)))
    content, _ = ask(log, "tail")
    value = content["value"]
    assert (value["first"], len(value["texts"]), value["tags"]["0"]) == (1_000, 5_000, ["x"])


def test_a_view_that_is_gone_does_not_stop_a_job():
    log = RemoteLog()

    def broken(content, buffers=None):
        raise OSError("no kernel")

    log.send = broken
    log.feed(JobEvent("a", text="one"))
    time.sleep(0.1)
    log.feed(JobEvent("a", text="two"))
    assert log.lines == ["one", "two"]


def test_a_log_of_no_job_is_refused():
    with pytest.raises(UsageError, match="a log shows a job, not int"):
        RemoteLog(3)


def test_cancelling_calls_what_was_given_and_tells_what_fails():
    called = []
    log = RemoteLog(cancel=lambda: called.append(threading.current_thread()))
    log.feed(JobEvent("a", "status", phase="RUNNING"))
    ask(log, "cancel")
    assert called == [threading.current_thread()]
    assert log.state["cancel"] == "asked"
    log.feed(JobEvent("a", "status", phase="CANCELLED"))
    log._news.now()
    assert (log.state["cancel"], log.state["over"]) == ("", True)

    failing = RemoteLog(cancel=lambda: 1 / 0, on_main_thread=True)
    ask(failing, "cancel")
    assert failing.lines == ["cancelling failed: ZeroDivisionError: division by zero"]
    assert failing.state["cancel"] == "can"
    content, _ = ask(RemoteLog(), "cancel")
    assert "cannot be cancelled from here" in content["trouble"]["what"]


# Local jobs ---------------------------------------------------------------------------------------


def test_a_local_job_runs_beside_and_gives_its_result():
    def work(log):
        log("epoch", 1, tags="train")
        log.progress(1, 2, "epochs")
        return np.arange(3)

    job = LocalJob(work)
    log = RemoteLog(job)
    assert job.result(5).tolist() == [0, 1, 2]
    assert log.phase == "COMPLETED"
    assert "epoch 1" in log.lines
    assert log.text().startswith("work (local-")
    assert "over" in repr(job)
    late = RemoteLog(job)
    assert late.lines == log.lines


def test_a_job_that_fails_shows_where():
    def work(log):
        raise UsageError("the probe has no data.", "it is empty.", "give it some.")

    job = LocalJob(work, title="probe")
    with pytest.raises(UsageError):
        job.result(5)
    log = RemoteLog(job)
    assert log.phase == "ERROR"
    assert log.lines[-1] == "ERROR: the probe has no data."
    assert "Next: give it some." in log.lines[-2]
    assert "local_job.py" not in log.text()


def test_a_cancelled_job_ends_at_its_next_word():
    go = threading.Event()

    def work(log):
        log("before")
        go.wait(5)
        try:
            log("after")
        except Exception:
            return "swallowed"

    job = LocalJob(work)
    log = RemoteLog(job)
    ask(log, "cancel")
    go.set()
    with pytest.raises(InterruptedError, match="was cancelled"):
        job.result(5)
    assert log.phase == "CANCELLED"
    assert "after" not in log.lines


def test_show_opens_the_log_of_a_job_and_a_dock_of_several():
    job = LocalJob(lambda log: log("one"))
    job.result(5)
    assert isinstance(insitu.show(job, title="mine"), RemoteLog)
    assert isinstance(insitu.show([job, job]), JobDock)


def test_a_job_is_lost_when_the_kernel_ends():
    go = threading.Event()

    def work(log):
        go.wait(5)
        log("what is said while names are taken away")

    job = LocalJob(work)
    log = RemoteLog(job)
    local_job._lose_all()
    go.set()
    with pytest.raises(InterruptedError):
        job.result(5)
    assert log.lines[1:] == ["LOST: The kernel ended while the job ran."]


@pytest.mark.slow
def test_a_job_that_a_process_loses_is_recorded_so(tmp_path):
    file = tmp_path / "run.jsonl"
    code = (
        "import time\nfrom insitu.widgets import LocalJob, RemoteLog\n"
        "def work(log):\n    while True: log('here'); time.sleep(0.001)\n"
        f"log = RemoteLog(LocalJob(work), record={str(file)!r})\ntime.sleep(0.1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    log = RemoteLog(Recording(file))
    assert log.phase == "LOST"
    assert log.lines[0] == "RUNNING: Your job has started running."
    assert log.lines[-1] == "LOST: The kernel ended while the job ran."


def test_waiting_for_a_job_has_an_end():
    go = threading.Event()
    job = LocalJob(lambda log: go.wait(5))
    with pytest.raises(TimeoutError, match="still runs"):
        job.result(0.01)
    go.set()
    assert job.result(5) is True
    assert job.title == "job"


# Recordings ---------------------------------------------------------------------------------------


def test_a_recorded_job_is_shown_again_after_a_restart(tmp_path):
    file = tmp_path / "run.jsonl"
    log = RemoteLog(title="lens", record=file)
    log.feed(*remote(), JobEvent("270a6e4d", "status", "done", "COMPLETED", time=120.0))
    log.close()
    again = RemoteLog(Recording(file), title="lens")
    assert again.lines == log.lines
    assert again.text() == log.text()
    assert again.state["cancel"] == ""


def test_a_recording_that_was_cut_off_says_so(tmp_path):
    file = tmp_path / "run.jsonl"
    lines = [json.dumps(event.as_dict()) for event in remote()]
    file.write_text("\n".join([*lines, "", "no json", '{"job": "x", "ki']))
    log = RemoteLog(Recording(file))
    assert log.phase == "RUNNING"
    assert log.lines[-2:] == [
        "2 lines of the recording are no events: left out.",
        "The recording ends here, before the job did.",
    ]


def test_a_recording_is_played_at_its_own_pace(tmp_path):
    file = tmp_path / "run.jsonl"
    events = [JobEvent("a", text=str(n), time=n * 0.1) for n in range(4)]
    file.write_text("".join(json.dumps(event.as_dict()) + "\n" for event in events))
    began = time.monotonic()
    log = RemoteLog(Recording(file, speed=2))
    wait_until(lambda: log.count == 5)
    assert 0.14 < time.monotonic() - began < 3


def test_a_recording_that_is_still_written_is_followed(tmp_path):
    file = tmp_path / "run.jsonl"
    writer = RemoteLog(record=file)
    writer.feed(JobEvent("a", text="one"))
    writer._news.now()
    reader = RemoteLog(Recording(file, follow=True))
    wait_until(lambda: reader.lines == ["one"])
    writer.feed(JobEvent("a", text="two"), JobEvent("a", "status", phase="COMPLETED"))
    wait_until(lambda: reader.lines == ["one", "two", "COMPLETED"])


def test_what_a_long_recording_does_not_keep_is_counted(tmp_path):
    file = tmp_path / "run.jsonl"
    line = json.dumps({"job": "a", "text": "x"}) + "\n"
    file.write_text('{"job": "a", "kind": "status", "phase": "RUNNING"}\n' + line * 40_007)
    log = RemoteLog(Recording(file))
    assert log.phase == "RUNNING"
    assert "… 8 earlier events are not kept" in log.lines


def test_an_empty_recording_is_a_job_that_said_nothing(tmp_path):
    file = tmp_path / "empty.jsonl"
    file.write_text("")
    assert RemoteLog(Recording(file)).lines == ["The recording ends here, before the job did."]


def test_a_recording_that_is_not_there_or_cannot_be_played_is_refused(tmp_path):
    with pytest.raises(UsageError, match="there is no recording"):
        Recording(tmp_path / "none.jsonl")
    (tmp_path / "some.jsonl").write_text("")
    with pytest.raises(UsageError, match="at speed 0"):
        Recording(tmp_path / "some.jsonl", speed=0)


# The dock -----------------------------------------------------------------------------------------


def test_a_dock_lists_jobs_and_sends_the_log_of_the_chosen_one():
    first, second = LocalJob(lambda log: log("one")), LocalJob(lambda log: log("two"))
    first.result(5), second.result(5)
    dock = JobDock(first, second)
    assert [job["job"] for job in dock.jobs] == [first.id, second.id]
    assert dock.chosen == first.id
    assert dock.phase(second.id) == "COMPLETED"
    sent = []
    dock.send = lambda content, buffers=None: sent.append(content)
    dock.chosen = second.id
    wait_until(lambda: sent)
    assert sent[0]["job"] == second.id
    assert "two" in sent[0]["lines"]["texts"]
    assert dock.text().splitlines()[0] == "2 jobs"
    assert "two" in dock.html()
    content, _ = ask(dock, "tail", job=first.id)
    assert "one" in content["value"]["texts"]
    content, _ = ask(dock, "tail", job="none")
    assert "there is no job 'none'" in content["trouble"]["what"]
    dock.close()


def test_a_dock_takes_events_of_jobs_it_did_not_know():
    dock = JobDock()
    dock.feed(*remote("a"), *remote("b"))
    dock._tell()
    assert [job["job"] for job in dock.jobs] == ["a", "b"]
    dock.feed(JobEvent("a", "status", phase="COMPLETED"))
    ask(dock, "clear")
    assert [job["job"] for job in dock.jobs] == ["b"]
    assert dock.chosen == "b"
    content, _ = ask(dock, "cancel", job="b")
    assert "cannot be cancelled" in content["trouble"]["what"]


def test_a_job_is_cancelled_from_the_dock():
    def work(log):
        while True:
            log("still here")
            time.sleep(0.01)

    job = LocalJob(work)
    dock = JobDock(job)
    ask(dock, "cancel", job=job.id)
    with pytest.raises(InterruptedError):
        job.result(5)
    assert dock.phase(job.id) == "CANCELLED"


def test_a_dock_of_very_many_jobs_lets_the_ended_ones_go():
    dock = JobDock()
    for n in range(250):
        dock.feed(JobEvent(str(n), "status", phase="COMPLETED" if n < 100 else "RUNNING"))
    dock._tell()
    assert len(dock.jobs) == 200
    assert dock.jobs[0]["job"] == "50"


# Batches ------------------------------------------------------------------------------------------


def test_news_is_sent_in_batches_and_the_last_is_not_lost():
    said, heard = [0], []
    news = Batches(lambda: heard.append(said[0]), 0.02)
    for _ in range(2_000):
        said[0] += 1
        news.soon()
    wait_until(lambda: heard and heard[-1] == 2_000)
    assert len(heard) < 20
