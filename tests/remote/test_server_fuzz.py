"""Payloads that are almost requests, and the time that one exchange takes."""

import random
import time

import pytest
from fake_workers import FakeWorkers, request
from loopback_server import running

from insitu.remote.protocol import Limits

SEED = 0


def damaged(rng, body):
    """A body with some of it changed, cut, doubled or made up."""
    match rng.randrange(6):
        case 0:
            return body[: rng.randrange(len(body))]
        case 1:
            return rng.randbytes(rng.randrange(2_000))
        case 2:
            return body[:7] + rng.randbytes(rng.randrange(200))
        case 3:
            return body + rng.randbytes(rng.randrange(50))
        case _:
            changed = bytearray(body)
            for _ in range(rng.randrange(1, 5)):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            return bytes(changed)


def fuzz(tmp_path, number):
    """Send so many; how each was answered."""
    rng = random.Random(SEED)
    body = request(["log", "hello"], ["token", 0, [1, 2]])
    found = []
    limits = Limits(queue=100_000, queue_per_user=100_000)
    with running(tmp_path, FakeWorkers(room=8), limits) as (_, client):
        for _ in range(number):
            answer = client.post("/v1/jobs", damaged(rng, body))
            found.append(answer.status_code)
            assert "Traceback" not in answer.text
            if answer.status_code != 202:
                assert list(answer.json()) == ["what", "why", "next"]
        assert client.events(client.send(body))[-1][2]["phase"] == "COMPLETED"
    return found


def test_damaged_payloads_are_answered_with_a_sentence(tmp_path):
    assert set(fuzz(tmp_path, 300)) <= {202, 400, 404}


@pytest.mark.slow
def test_ten_thousand_damaged_payloads_are_answered_with_a_sentence(tmp_path, capsys):
    found = fuzz(tmp_path, 10_000)
    with capsys.disabled():
        print("\n" + ", ".join(f"{status}: {found.count(status)}" for status in sorted({*found})))
    assert set(found) <= {202, 400, 404}


@pytest.mark.slow
def test_a_local_exchange_of_a_megabyte_takes_some_milliseconds(tmp_path, capsys):
    times = 30
    with running(tmp_path) as (_, client):
        job = client.send(request(*(["local", n, 2**20] for n in range(times))))
        took, payload = [], b"y" * 2**20
        with client.get(f"/v1/jobs/{job}/events", stream=True) as answer:
            number = 0
            for line in answer.iter_lines(chunk_size=1):
                if line.startswith(b"event: local"):
                    began = time.perf_counter()
                    assert len(client.get(f"/v1/jobs/{job}/local/{number}").content) == 2**20
                    path = f"/v1/jobs/{job}/local/{number}"
                    assert client.post(path, payload).status_code == 204
                    took.append(time.perf_counter() - began)
                    number += 1
    with capsys.disabled():
        print(f"\n1 MB down and 1 MB up: median {sorted(took)[times // 2] * 1000:.1f} ms")
    assert len(took) == times
    assert sorted(took)[times // 2] < 0.05


def test_a_plain_job_costs_some_milliseconds(tmp_path):
    with running(tmp_path) as (_, client):
        took = []
        for _ in range(20):
            began = time.perf_counter()
            client.events(client.send(request(["log", "hello"])))
            took.append(time.perf_counter() - began)
    assert sorted(took)[3] < 0.04  # 3 to 7 ms; 40 more is Nagle's algorithm, forgotten somewhere
