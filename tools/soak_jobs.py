"""What the clients of the soak send, and what must come of it.

    kind = KINDS["generate"]
    kind.run(model, connection, 7) == kind.want(model, 7)

Every job is made from one number, so that what is right can be computed here, by the same block.
"""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import insitu
from insitu.errors import JobTimeoutError

PROMPTS = (
    "The Eiffel Tower is in the city of",
    "Once upon a time",
    "A model was read in its place, and the place was",
    "Buckingham Palace",
)
WAIT_S = 120.0


@dataclass(frozen=True)
class Kind:
    """One kind of job.

    Args:
        run: sends it with `remote`, and gives what came back; without, it runs here.
        want: gives the right answer, where that is not what `run` gives here.
        raises: the errors that are right.
        weight: how often it is sent, among the others.
    """

    run: Callable[[Any, Any, int], Any]
    want: Callable[[Any, int], Any] | None = None
    raises: tuple[type[BaseException], ...] = ()
    weight: int = 1

    def right(self, model: Any, n: int) -> Any:
        """What must come back."""
        if self.raises:
            return None
        return self.run(model, None, n) if self.want is None else self.want(model, n)


def prompt(n: int) -> str:
    """One of the prompts."""
    return PROMPTS[n % len(PROMPTS)]


def trace(model: Any, remote: Any, n: int) -> Any:
    """An edit in the middle, and what comes of it."""
    layer, scale = n % 6, 0.5 + n % 7
    with model.trace(prompt(n), remote=remote):
        model.transformer.h[layer].output[:] = model.transformer.h[layer].output * scale
        logits = model.lm_head.output[:, -1].save()
    return logits  # noqa: RET504 - it is made on the server


def local(model: Any, remote: Any, n: int) -> Any:
    """Values go down, the client's own function changes them, and they go up again."""
    factor, seen = 1 + n % 5, []

    def mine(value: Any) -> Any:
        seen.append(tuple(value.shape))
        return value * factor

    with model.trace(prompt(n), remote=remote):
        hidden = model.transformer.h[3].output
        with insitu.local():
            hidden = mine(hidden)
        model.transformer.h[3].output[:] = hidden
        logits = model.lm_head.output[:, -1].save()
    return logits, seen


def generate(model: Any, remote: Any, n: int) -> Any:
    """Tokens, each told here as it comes."""
    arrived = []
    with model.generate(prompt(n), max_new_tokens=3 + n % 3, remote=remote) as tracer:
        tokens = list().save()  # noqa: C408
        for _ in tracer.iter[:]:
            token = model.lm_head.output[0, -1].argmax(dim=-1).item()
            tokens.append(token)
            with insitu.local():
                arrived.append(token)
    return tokens, arrived


def session(model: Any, remote: Any, n: int) -> Any:
    """Two passes; the second uses what the first has read."""
    layer = n % 6
    with model.session(remote=remote):
        with model.trace(prompt(n)):
            hidden = model.transformer.h[layer].output.save()
        with model.trace(prompt(n + 1)):
            model.transformer.h[layer].output[:, 0] = hidden[:, 0] * 2
            logits = model.lm_head.output[:, -1].save()
    return hidden, logits


def big(model: Any, remote: Any, n: int) -> Any:
    """A result of 2 to 16 MB."""
    size = (1 + n % 8) * 2**19
    with model.trace(prompt(n), remote=remote):
        values = (torch.arange(size, dtype=torch.float32) * (n % 13)).save()
    return values  # noqa: RET504


def noise(model: Any, remote: Any, n: int) -> Any:
    """Numbers that are the same in every job, whatever jobs before it have drawn."""
    with model.trace(prompt(n), remote=remote):
        drawn = torch.rand(8).save()
        kind = str(torch.get_default_dtype()).save()
        zeros = torch.relu(torch.tensor([-1.0, 2.0])).save()
        weight = model.lm_head.weight.detach().double().sum().save()
    return drawn, kind, zeros, weight


def right_noise(model: Any, n: int) -> Any:
    drawn = torch.rand(8, generator=torch.Generator().manual_seed(0))
    weight = model._module.lm_head.weight.detach().double().sum()
    return drawn, "torch.float32", torch.tensor([0.0, 2.0]), weight


def poison(model: Any, remote: Any, n: int) -> Any:
    """Spoils all that it can reach; the others' numbers show whether any of it stayed."""
    with model.trace(prompt(n), remote=remote):
        mark = (n * 3).save()
        model.lm_head.weight.data.zero_()
        model.transformer.h[0].mlp.c_fc.weight.data.fill_(math.nan)
        torch.manual_seed(n)
        torch.rand(100)
        torch.set_default_dtype(torch.float64)
        torch.relu = None
        insitu.spoiled = True
    return mark


def loud(model: Any, remote: Any, n: int) -> Any:
    """300 lines, all of them, in order."""
    with model.trace(prompt(n), remote=remote) as tracer:
        for i in range(300):
            print(n, i)
    events = tracer.job.events  # with the client's own word, should the server be killed meanwhile
    return [it.text for it in events if it.kind == "log" and "connection" not in it.tags]


def flood(model: Any, remote: Any, n: int) -> Any:
    """As many jobs at once as the queue takes; gives the ends of those that it took."""
    tracers = []
    with contextlib.suppress(insitu.QueueFullError):
        for i in range(16):
            with model.trace(prompt(n), remote=remote, blocking=False) as tracer:
                answer = (torch.ones(3) * (n + i)).save()  # noqa: F841
            tracers.append(tracer)
    found = [tracer.job.result(timeout_s=WAIT_S)["answer"] for tracer in tracers]
    return [torch.equal(it, torch.ones(3) * (n + i)) for i, it in enumerate(found)]


def within(model: Any, remote: Any, n: int) -> Any:
    """Much memory, yet no more than a job may have."""
    with model.trace(prompt(n), remote=remote):
        total = torch.ones(40 * 2**20).sum().item().save()
    return total  # noqa: RET504


def bomb(model: Any, remote: Any, n: int) -> Any:
    """More memory than a job may have."""
    with model.trace(prompt(n), remote=remote):
        held = list().save()  # noqa: C408
        while True:
            held.append(torch.ones(2**23))


def failing(model: Any, remote: Any, n: int) -> Any:
    """An error of the user's own."""
    with model.trace(prompt(n), remote=remote):
        hidden = model.transformer.h[n % 6].output
        last = hidden[0, 9999].save()
    return last  # noqa: RET504


def endless(model: Any, remote: Any, n: int) -> Any:
    """A loop that catches whatever would end it."""
    with model.trace(prompt(n), remote=remote):
        while True:
            try:
                n += 1
            except BaseException:
                n = 0


def cancelled(model: Any, remote: Any, n: int) -> Any:
    """A loop that is cancelled from here; gives how long that took."""
    with model.trace(prompt(n), remote=remote, blocking=False) as tracer:
        while True:
            n += 1
    job = tracer.job
    time.sleep((n % 10) / 5)
    began = time.monotonic()
    job.cancel()
    job.wait(WAIT_S)
    return job.phase, time.monotonic() - began


def is_same(got: Any, right: Any) -> bool:
    """Equal, with tensors to 1e-5."""
    if isinstance(right, torch.Tensor):
        return (
            isinstance(got, torch.Tensor)
            and (got.shape, got.dtype) == (right.shape, right.dtype)
            and torch.allclose(got, right, rtol=1e-5, atol=1e-5)
        )
    if isinstance(right, (tuple, list)):
        return len(got) == len(right) and all(map(is_same, got, right))
    return bool(got == right)


KINDS = {
    "trace": Kind(trace, weight=8),
    "local": Kind(local, weight=3),
    "generate": Kind(generate, weight=3),
    "session": Kind(session, weight=2),
    "big": Kind(big, weight=2),
    "noise": Kind(noise, right_noise, weight=3),
    "poison": Kind(poison, lambda model, n: n * 3, weight=2),
    "loud": Kind(loud, lambda model, n: [f"{n} {i}" for i in range(300)], weight=1),
    "within": Kind(within, lambda model, n: float(40 * 2**20), weight=1),
    "failing": Kind(failing, raises=(IndexError,), weight=2),
    "bomb": Kind(bomb, raises=(RuntimeError, MemoryError, JobTimeoutError), weight=1),
    "endless": Kind(endless, raises=(JobTimeoutError,), weight=1),
    "cancelled": Kind(cancelled, lambda model, n: "CANCELLED", weight=2),
    "flood": Kind(flood, weight=1),
}
