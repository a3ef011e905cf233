"""The queue: fair between users, in order for each, as models have room."""

import random
from collections import Counter

from insitu.remote.server.queue import Line, Waiting


def line_of(*jobs, most=100, most_per_user=10):
    line = Line(most, most_per_user)
    for job in jobs:
        user, model = job[0], job.partition(":")[2] or "demo"
        line.add(Waiting(job, user, model))
    return line


def drained(line, room=lambda model: 1):
    """The order in which jobs run one after another."""
    found = []
    while (it := line.next(room)) is not None:
        found.append(it.job)
        line.ended(it.user)
    return found


def test_users_take_turns_and_each_ones_jobs_keep_their_order():
    line = line_of("a1", "a2", "a3", "a4", "b1", "b2", "c1")
    assert drained(line) == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_who_runs_least_goes_first():
    line = line_of("a1", "a2", "a3", "b1", "b2")
    assert [line.next(lambda model: 1).job for _ in range(4)] == ["a1", "b1", "a2", "b2"]
    line.ended("b")
    line.ended("b")
    line.add(Waiting("b3", "b", "demo"))
    assert line.next(lambda model: 1).job == "b3"


def test_a_model_without_room_holds_nobody_else_up():
    line = line_of("a1:full", "a2:free", "b1:full")
    assert line.next(lambda model: int(model == "free")).job == "a2:free"
    assert line.next(lambda model: int(model == "free")) is None
    assert len(line) == 2


def test_places_are_the_order_in_which_jobs_come():
    line = line_of("a1", "a2", "a3", "b1", "b2", "c1")
    places = line.places()
    assert sorted(places, key=places.get) == drained(line)
    assert sorted(places.values()) == [1, 2, 3, 4, 5, 6]


def test_the_queue_is_bounded_for_all_and_for_each():
    line = line_of(*(f"a{n}" for n in range(10)), most=12)
    assert line.full_for("a") == "10 jobs of yours wait already."
    assert line.full_for("b") == ""
    line.hold("b")  # a request that is still being read counts
    line.hold("b")
    assert line.full_for("c") == "the queue is full: 12 jobs wait."
    line.release("b")
    assert line.full_for("c") == ""


def test_removing_a_job_leaves_the_others():
    line = line_of("a1", "a2", "b1")
    assert line.remove("a1")
    assert not line.remove("a1")
    assert drained(line) == ["a2", "b1"]


def test_a_flood_by_one_user_costs_another_less_than_two_turns():
    """Fault 21, as arithmetic: 2 places, jobs of equal length, one user always has ten waiting."""
    rng = random.Random(0)
    line, running, sent = Line(100, 10), [], Counter()
    waits = []

    def room(model):
        return 2 - len(running)

    for now in range(2_000):
        while not line.full_for("flood"):
            line.add(Waiting(f"f{sent['flood']}", "flood", "demo"))
            sent["flood"] += 1
        if rng.random() < 0.1 and not line.full_for("ada"):
            sent["ada"] += 1
            line.add(Waiting(f"ada{now}", "ada", "demo"))
        for it, _ in [each for each in running if each[1] <= now]:
            line.ended(it.user)
        running[:] = [each for each in running if each[1] > now]
        while (it := line.next(room)) is not None:
            running.append((it, now + 5))
            if it.user == "ada":
                waits.append(now - int(it.job[3:]))
    alone = 5  # a place is free again after at most one job's time
    assert len(waits) > 100
    assert sum(waits) / len(waits) < 2 * alone
