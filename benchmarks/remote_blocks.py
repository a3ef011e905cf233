"""The blocks that `benchmarks.remote` sends."""

import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import requests
import torch
from zstandard import ZstdDecompressor

import insitu
from insitu.remote.client import tracer as client
from insitu.remote.client.connection import Connection
from insitu.remote.wire.pieces import PREFIX
from insitu.remote.wire.pieces import packed as packed_piece

PROMPT = "The Eiffel Tower is in the city of"
LOCAL_BYTES = 2**20
BIG_BYTES = 100 * 10**6


def traced(model: Any, remote: Any) -> Any:
    """Reads two sites."""
    with model.trace(PROMPT, remote=remote):
        hidden = model.transformer.h[2].output.save()
        logits = model.lm_head.output[:, -1].save()
    assert hidden.ndim == 3
    return logits


def exchanged(model: Any, remote: Any, times: int, came: list[float] | None = None) -> None:
    """A megabyte goes down and comes up again, so many times; and when each came."""
    seen = []

    def mine(value: Any) -> Any:
        if came is not None:
            came.append(time.perf_counter())
        seen.append(value[0].item())
        return value + 1

    with model.trace(PROMPT, remote=remote):
        values = torch.randn(LOCAL_BYTES // 4)
        first = values[0].item().save()
        for _ in range(times):
            values = values * 1  # another tensor, which has to go down
            with insitu.local():
                values = mine(values)
        last = values[0].item().save()
    assert len(seen) == times
    assert abs(last - first - times) < 1e-3


def big(model: Any, remote: Any, ended: Callable[[], None]) -> None:
    """A large result of random numbers; `ended` is called when it can be fetched."""
    with model.trace(PROMPT, remote=remote, blocking=False) as tracer:
        values = torch.rand(BIG_BYTES // 4).save()  # noqa: F841
    job = tracer.job
    job.wait(120)
    ended()
    found = job.result()["values"]
    assert found.numel() == BIG_BYTES // 4
    assert torch.equal(found[:8], torch.rand(8, generator=torch.Generator().manual_seed(0)))


def summed(model: Any, remote: Any) -> None:
    """The same numbers, made there and not sent."""
    with model.trace(PROMPT, remote=remote):
        total = torch.rand(BIG_BYTES // 4)[:8].sum().save()
    assert total.ndim == 0


def busy(model: Any, remote: Any, time_s: float) -> None:
    """A job that takes a while."""
    with model.trace(PROMPT, remote=remote):
        time.sleep(time_s)
        done = (3 + 4).save()
    assert done == 7


def packed(model: Any, time_s: float) -> bytes:
    """The request of `busy`, not sent."""
    found: list[bytes] = []
    run = client.RemoteTracer._run
    try:
        client.RemoteTracer._run = lambda self, payload: found.append(payload) or {"done": 7}  # type: ignore[method-assign,assignment,func-returns-value]
        busy(model, Connection("http://127.0.0.1:1"), time_s)
    finally:
        client.RemoteTracer._run = run  # type: ignore[method-assign]
    return found[0]


def damaged(model: Any, server: Connection, count: int) -> tuple[Counter[int], Counter[str], int]:
    """Send so many damaged requests; the answers, how jobs ended, and how many without a sentence.

    Half are damaged as bytes, half after they were inflated, so that what runs sees them too.
    """
    rng = random.Random(0)
    body = packed(model, 0.0)
    answers: Counter[int] = Counter()
    phases: Counter[str] = Counter()
    bad = 0
    headers = {"Authorization": f"Bearer {server.key}", "X-Protocol": "1"}
    with requests.Session() as session:
        for n in range(count):
            data = _cut(rng, body) if n % 2 else _bent(rng, body)
            answer = session.post(f"{server.url}/v1/jobs", data=data, headers=headers)
            answers[answer.status_code] += 1
            told = answer.json()
            if answer.status_code != 202:
                bad += told.keys() != {"what", "why", "next"} or answer.status_code >= 500
                continue
            job = insitu.job(told["id"], remote=server)
            job.wait(60)
            phases[job.phase] += 1
            bad += job.phase not in ("COMPLETED", "ERROR")
    return answers, phases, bad


def _cut(rng: random.Random, body: bytes) -> bytes:
    changed = bytearray(body)
    for _ in range(rng.randrange(1, 4)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed[: rng.choice((len(changed), rng.randrange(len(changed))))])


def _bent(rng: random.Random, body: bytes) -> bytes:
    """One that is a container still, with something else in its JSON."""
    inner = bytearray(ZstdDecompressor().decompress(body[7 + PREFIX.size :]))
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(8, len(inner))
        inner[at] = rng.choice(b'{}[]",:0159aeintx\x00\xff')
    return body[:7] + packed_piece(bytes(inner), 3)
