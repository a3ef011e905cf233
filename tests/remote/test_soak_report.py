"""The soak's own measures, on a server that was never there."""

from types import SimpleNamespace

import pytest
from soak_report import Job, Report
from soak_server import Watch


def ran(created, running, ended, phase="COMPLETED"):
    times = {"RUNNING": running}
    return Job(phase, created, ended, times, [1], "end")


def report(hurt, loading, jobs, begun=()):
    """A report of what is known of one server."""
    made = Report.__new__(Report)
    made.place = SimpleNamespace(hurt=hurt, begun=[*begun])
    made.watch = Watch(made.place)
    made.watch.loading = loading
    made.jobs = dict(enumerate(jobs))
    return made


def test_the_next_job_counts_from_when_the_model_is_there_again():
    waited = ran(created=9.0, running=19.5, ended=19.8)
    once = report([(10.0, "model")], [[10.1, 19.2]], [waited])
    assert once.next_job_s() == pytest.approx(0.3)
    assert once.watch.loads_s() == pytest.approx([9.1])


def test_a_model_killed_while_it_is_loaded_is_waited_for_too():
    waited = ran(created=9.0, running=26.1, ended=26.4)
    twice = report([(10.0, "model"), (16.0, "model")], [[10.1, 26.0]], [waited])
    assert twice.next_job_s() == pytest.approx(0.1)


def test_a_job_that_waits_for_long_after_a_crash_is_told():
    late = ran(created=9.0, running=17.0, ended=18.0)
    assert report([(10.0, "job")], [], [late]).next_job_s() == pytest.approx(7.0)
    assert report([(10.0, "model")], [[10.1, 11.0]], [late]).next_job_s() == pytest.approx(6.0)
    found = report([(10.0, "server")], [], [late], begun=[2.0, 12.0])
    assert found.next_job_s() == pytest.approx(5.0)
    asked_later = ran(created=15.0, running=17.0, ended=18.0)
    assert report([(10.0, "job")], [], [asked_later]).next_job_s() == 0.0
