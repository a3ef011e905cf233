"""What a block's writes did to the next token: distributions before and after, and their distance.

    one_forward(bare, result, recorder, model)      # Effects(change=Change(moved=0.31, …), …)
    generation(bare, capture, ids, model)           # the same, step by step

The distance is total variation: half the sum of the absolute differences, so 0 is "the same" and 1
"nothing in common". With several prompts it is the largest over them. The effect of each write of
several is that of a chain: the bare forward, then with write 1, then with writes 1 and 2, …
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from insitu.notebook.forwards import Bare, CannotRepeatError
from insitu.notebook.recorder import Recorder

SHOWN = 5
"""Likeliest tokens shown, before and after."""
REPLAYED_MAX = 8
"""Writes measured one by one; each costs a forward."""
PATIENCE_S = 5.0
"""A forward slower than this is run once, and writes are not measured one by one."""
NOTHING = 0.0005
"""Moved less than this, a distribution has not moved."""
_NOISE = 0.005  # between a forward and its replay, in bfloat16


@dataclass(frozen=True)
class Candidate:
    """A token that may come next."""

    text: str
    probability: float


@dataclass(frozen=True)
class Change:
    """The next token's distribution without and with the block."""

    moved: float
    row: int
    """The prompt shown, counted from 0: the one that moved most."""
    before: tuple[Candidate, ...]
    after: tuple[Candidate, ...]


@dataclass(frozen=True)
class StepChange:
    """One step of a generation."""

    step: int
    chosen: str
    change: Change


@dataclass(frozen=True)
class Effects:
    """What the writes of a run did."""

    change: Change | None = None
    of_writes: tuple[float, ...] = ()
    """How far each write moved it, in order; empty when that was not measured."""
    steps: tuple[StepChange, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class Capture:
    """A logits processor that changes nothing and remembers what each step chose from."""

    ids: torch.Tensor | None = None
    logits: list[torch.Tensor] = field(default_factory=list)
    heard: Callable[[torch.Tensor, torch.Tensor], None] | None = None
    """Who else is told, as it comes."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Called by transformers with the tokens so far and the logits of the next."""
        self.ids = input_ids
        self.logits.append(scores.detach().clone())
        if self.heard is not None:
            self.heard(input_ids, scores)
        return scores


def one_forward(bare: Bare, result: Any, recorder: Recorder, model: Any) -> Effects:
    """Compare a traced forward with the bare one.

    Args:
        bare: the forward without the block.
        result: what the traced forward returned.
        recorder: what the block did.
        model: the wrapped model, for its tokenizer and the order of its modules.

    Raises:
        CannotRepeatError: the bare forward gives nothing to compare.
    """
    after = last_logits(result)
    if after is None:
        return Effects()
    began = time.perf_counter()
    before = last_logits(bare.run())
    took_s = time.perf_counter() - began
    if before is None or before.shape != after.shape:
        raise CannotRepeatError("without the block the model returned logits of another shape")
    chance_before, chance_after = before.softmax(-1), after.softmax(-1)
    change = _change(chance_before, chance_after, _decoder(model))
    of_writes, notes = _one_by_one(bare, recorder, model, took_s, (chance_before, chance_after))
    return Effects(change, of_writes, notes=notes)


def generation(bare: Bare, capture: Capture, ids: Any, model: Any) -> Effects:
    """Compare each step of a traced generation with a bare forward on the same tokens.

    Raises:
        CannotRepeatError: rows were added or the logits do not line up.
    """
    prompt = bare.kwargs.get("input_ids")
    if prompt is None or capture.ids is None or not capture.logits:
        return Effects()
    if capture.ids.shape[0] != prompt.shape[0]:
        raise CannotRepeatError("the generation held several candidates for each prompt")
    start, end = prompt.shape[1], capture.ids.shape[1]
    with torch.no_grad():
        output = bare.with_inputs(**_extended(bare.kwargs, capture.ids)).run()
    logits = getattr(output, "logits", None)
    if logits is None or logits.dim() != 3 or logits.shape[1] != end:
        raise CannotRepeatError("the model returns no logits for each position")
    decode = _decoder(model)
    steps = []
    for step, after in enumerate(capture.logits):
        before = logits[:, start - 1 + step].float()
        change = _change(before.softmax(-1), after.float().softmax(-1), decode)
        token = ids[change.row, start + step] if start + step < ids.shape[1] else None
        steps.append(StepChange(step, "" if token is None else decode(int(token)), change))
    most = max(steps, key=lambda step: step.change.moved)
    return Effects(most.change, steps=tuple(steps))


def last_logits(output: Any) -> torch.Tensor | None:
    """The next token's logits, `[batch, d_vocab]`; None when there are none."""
    logits = output.get("logits") if isinstance(output, Mapping) else None
    if not isinstance(logits, torch.Tensor) or logits.dim() != 3:
        return None
    return logits[:, -1].detach().float()


def distance(first: torch.Tensor, second: torch.Tensor) -> tuple[float, int]:
    """The largest total variation over the rows of two batches of distributions, and its row."""
    rows = (first - second).abs().sum(-1) / 2
    row = int(rows.argmax())  # a row of NaN counts as the largest
    return float(rows[row]), row


def _one_by_one(
    bare: Bare,
    recorder: Recorder,
    model: Any,
    took_s: float,
    ends: tuple[torch.Tensor, torch.Tensor],
) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """How far each write moved the distribution, and what to say about the measurement."""
    writes = recorder.writes
    if not writes:
        return (), _left_over(*ends, 0)
    if obstacle := _obstacle(recorder, model, took_s):
        return (), (f"Each write's own effect was not measured: {obstacle}.",)
    moved, last = [], ends[0]
    for count in range(1, len(writes) + 1):
        logits = last_logits(bare.run(writes[:count]))
        if logits is None or logits.shape != last.shape:
            return (), ("Each write's own effect was not measured: a replay gave other logits.",)
        chance = logits.softmax(-1)
        moved.append(distance(last, chance)[0])
        last = chance
    return tuple(moved), _left_over(last, ends[1], len(writes))


def _obstacle(recorder: Recorder, model: Any, took_s: float) -> str:
    writes = recorder.writes
    if len(writes) > REPLAYED_MAX:
        return f"there are {len(writes)} writes, and up to {REPLAYED_MAX} are replayed"
    if not all(isinstance(write.module, torch.nn.Module) for write in writes):
        return "an operation inside a forward was written, and only modules are replayed"
    if any(write.values is None for write in writes):
        return "a written value is too large to keep, or of another structure"
    order = model._orders.get("trace")  # None while every pass so far has skipped something
    if order is not None and any(write.module not in order.single for write in writes):
        return "a module that was written runs more than once in a forward"
    if took_s > PATIENCE_S:
        return f"a forward takes more than {PATIENCE_S:.0f} s"
    return ""


def _left_over(replayed: torch.Tensor, after: torch.Tensor, writes: int) -> tuple[str, ...]:
    """A sentence when the writes do not account for the whole change."""
    rest, _ = distance(replayed, after)
    if not rest >= _NOISE:  # NaN is told elsewhere
        return ()
    seen = "The writes seen explain" if writes else "No write was seen, which explains"
    return (f"{seen} all but {rest:.2f} of the change: something other than a site was changed.",)


def _change(before: torch.Tensor, after: torch.Tensor, decode: Callable[[int], str]) -> Change:
    moved, row = distance(before, after)
    return Change(moved, row, _likeliest(before[row], decode), _likeliest(after[row], decode))


def _likeliest(chance: torch.Tensor, decode: Callable[[int], str]) -> tuple[Candidate, ...]:
    if bool(chance.isnan().any()):
        return ()
    top = chance.topk(min(SHOWN, chance.numel()))
    return tuple(
        Candidate(decode(token), probability)
        for token, probability in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    )


def _decoder(model: Any) -> Callable[[int], str]:
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        return lambda token: f"#{token}"
    return lambda token: str(tokenizer.decode([token]))


def _extended(kwargs: Mapping[str, Any], ids: torch.Tensor) -> dict[str, Any]:
    """The prompt's inputs with the generated tokens after them."""
    inputs: dict[str, Any] = {"input_ids": ids}
    more = ids.shape[1] - kwargs["input_ids"].shape[1]
    mask = kwargs.get("attention_mask")
    if mask is not None:
        inputs["attention_mask"] = torch.cat((mask, mask.new_ones(mask.shape[0], more)), 1)
    positions = kwargs.get("position_ids")
    if positions is not None:
        following = positions[:, -1:] + torch.arange(1, more + 1, device=positions.device)
        inputs["position_ids"] = torch.cat((positions, following), 1)
    return inputs


def decoded(model: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """Each token as text."""
    return tuple(map(_decoder(model), ids))
