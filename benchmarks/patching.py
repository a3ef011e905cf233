"""Activation patching of every layer and position of the demo model.

    activation_patching(model, clean, corrupt, logit_difference(model, " Paris", " Rome"))

What it is compared with is a loop of raw hooks: the clean residual streams are read once, and then
each cell is one forward of the corrupted prompt with one hook that puts one position in. In
nnsight it is the same loop, of one trace for each cell. Insitu makes cells rows of a few passes,
begins each at its first patched layer, and does not run those that change nothing: of the three
pairs of prompts one differs late, one in its second token, and one in its second and fourth.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import insitu
from benchmarks import libraries
from benchmarks.comparison import TIMES, Row, Task
from benchmarks.libraries import INSITU, NNSIGHT, TOLERANCE
from benchmarks.subjects import Subject
from benchmarks.timing import Way
from insitu.methods.activation_patching import activation_patching
from insitu.methods.metrics import logit_difference

TITLE = "Activation patching, every layer × position"
PATCHING_MAX = 0.2


@dataclass(frozen=True)
class Pair:
    """Two prompts, and the answers that tell them apart."""

    name: str
    clean: str
    corrupt: str
    right: str
    wrong: str


PAIRS = (
    Pair(
        "one name of 14 tokens",
        "When Mary and John went to the store, John gave a drink to",
        "When Mary and John went to the store, Mary gave a drink to",
        " Mary",
        " John",
    ),
    Pair(
        "landmarks, 8 tokens",
        "The Eiffel Tower is in the city of",
        "The Trevi Fountain is in the city of",
        " Paris",
        " Rome",
    ),
    Pair(
        "all names of 15 tokens",
        "Then, Mary and John went to the store. John gave a drink to",
        "Then, Tom and Anna went to the store. Tom gave a drink to",
        " Mary",
        " Anna",
    ),
)


def rows(quick: bool) -> Iterator[Row]:
    """Three pairs of prompts."""
    model = insitu.LanguageModel("demo")
    for pair in PAIRS[:1] if quick else PAIRS:
        clean, corrupt = (model.tokenizer(it, return_tensors="pt").input_ids for it in
                          (pair.clean, pair.corrupt))  # fmt: skip
        answers = [model.tokenizer(it).input_ids[0] for it in (pair.right, pair.wrong)]
        subject = Subject(
            "demo model", model._module, list(model._module.transformer.h),
            kwargs={"input_ids": corrupt}, prefix="transformer.h",
        )  # fmt: skip
        loop = Way(hooked(subject, clean, answers))
        yield Row(
            f"{pair.name}, of a loop of raw hooks", TIMES,
            {INSITU: lambda pair=pair, loop=loop: Task(swept(model, pair), loop, loop, TOLERANCE),
             NNSIGHT: lambda s=subject, c=clean, a=answers, loop=loop:
             Task(traced(s, c, a), loop, loop, TOLERANCE)},
            subject.name, bound=PATCHING_MAX,
        )  # fmt: skip


def swept(model: Any, pair: Pair) -> Way:
    """By the method; tokens and answers are looked up beforehand, as for the loops."""
    metric = logit_difference(model, pair.right, pair.wrong)
    clean, corrupt = (model.tokenizer(it).input_ids for it in (pair.clean, pair.corrupt))

    def run() -> list[Tensor]:
        found = activation_patching(model, clean, corrupt, metric)
        return [found.further["metric"].values]

    return Way(run)


def hooked(subject: Subject, clean: Tensor, answers: list[int]) -> Callable[[], list[Tensor]]:
    """By one forward with one hook for each cell."""
    right, wrong = answers
    corrupt = (subject.kwargs or {})["input_ids"]

    @torch.no_grad()
    def run() -> list[Tensor]:
        kept: list[Tensor] = []
        handles = [
            layer.register_forward_pre_hook(lambda _module, args: kept.append(args[0].clone()))
            for layer in subject.layers
        ]
        subject.module(clean)
        for handle in handles:
            handle.remove()
        found = torch.empty(len(subject.layers), corrupt.shape[1])
        for number, layer in enumerate(subject.layers):
            for pos in range(corrupt.shape[1]):

                def put(
                    _module: Any, args: Any, number: int = number, pos: int = pos
                ) -> tuple[Any, ...]:
                    stream = args[0].clone()
                    stream[:, pos] = kept[number][:, pos]
                    return (stream, *args[1:])

                handle = layer.register_forward_pre_hook(put)
                logits = subject.module(corrupt).logits[0, -1]
                handle.remove()
                found[number, pos] = logits[right] - logits[wrong]
        return [found]

    return run


def traced(subject: Subject, clean: Tensor, answers: list[int]) -> Way:
    """By one trace for each cell, as nnsight's own examples do it."""
    right, wrong = answers
    corrupt = (subject.kwargs or {})["input_ids"]
    model, keep = libraries.language(NNSIGHT, subject), libraries.keep(NNSIGHT)
    layers = subject.wrapped_layers(model)

    @torch.no_grad()
    def run() -> list[Tensor]:
        with model.trace(clean):
            kept = keep([])
            for layer in layers:
                kept.append(layer.input)
        found = torch.empty(len(layers), corrupt.shape[1])
        for number, layer in enumerate(layers):
            for pos in range(corrupt.shape[1]):
                with model.trace(corrupt):
                    layer.input[:, pos] = kept[number][:, pos]
                    logits = keep(model.lm_head.output[0, -1])
                found[number, pos] = logits[right] - logits[wrong]
        return [found]

    return Way(run)
