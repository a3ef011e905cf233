"""One run of a `%%trace` cell, from its tracer to the facts on its card.

session = Session(operands, request)
with session.tracer:
    ...
session.card(run_s)
"""

import statistics
from typing import Any, cast

import torch

from insitu.engine.trace import Tracer
from insitu.engine.values import describe
from insitu.errors import PassClosedError
from insitu.notebook import effects, noted
from insitu.notebook.card_facts import Card, Timing
from insitu.notebook.effects import Capture, Effects
from insitu.notebook.forwards import Bare, CannotRepeatError
from insitu.notebook.operands import Operands
from insitu.notebook.recorder import Recorder
from insitu.notebook.request import Request
from insitu.twins import randomness

_REPEATS = 7
_PATIENCE_S = 2.0


class Session:
    """A tracer that is watched, with what is needed to compare its run with the bare model."""

    def __init__(self, operands: Operands, request: Request) -> None:
        self.operands = operands
        self.request = request
        self.recorder = Recorder()
        self.capture = Capture()
        self.notes: list[str] = []
        self.obstacle = ""
        self.random = randomness.now()
        self.tracer = self._tracer()
        self.tracer.watch = None if request.quiet else self.recorder
        kind = "trace" if operands.tokens is None else "generate"
        self.is_first_pass = kind not in operands.model._orders
        self.bare = None if request.quiet else self._bare()

    def card(self, run_s: float) -> Card:
        """The facts of the run, once it is over."""
        operands, recorder = self.operands, self.recorder
        recorder.finish()
        if recorder.trouble:
            self.notes.append(f"Some sites could not be recorded ({recorder.trouble}).")
        moved = self._effects()
        timing = self._timing(run_s - recorder.seconds) if self.request.time else None
        prompts, shown_input = self._input()
        card = Card(
            model=type(operands.model._module).__name__,
            tokens=operands.tokens,
            prompts=prompts,
            given=shown_input,
            visits=tuple(recorder.visits),
            written=tuple(write.visit for write in recorder.writes),
            effects=moved,
            timing=timing,
            notes=(*moved.notes, *self.notes),
        )
        noted.note(operands, self.request, card, run_s - recorder.seconds, self.random)
        return card

    def note(self, run_s: float, error: BaseException | None = None) -> None:
        """Note a run that has no card."""
        noted.note_plain(self.operands, self.request, run_s, self.random, error)

    def _tracer(self) -> Tracer:
        model, args, tokens = self.operands.model, self.operands.args, self.operands.tokens
        if tokens is None:
            return cast(Tracer, model.trace(*args))
        is_watched = not self.request.quiet or self.request.view == "generation"
        watched = {"logits_processor": [self.capture]} if is_watched else {}
        generate: Any = model.generate
        return cast(Tracer, generate(*args, max_new_tokens=tokens, **watched))

    def _bare(self) -> Bare | None:
        """The prompt's own forward; a generation is compared with one on its tokens."""
        try:
            return Bare.of(self.operands.model.trace(*self.operands.args))
        except CannotRepeatError as error:
            self.obstacle = str(error)
            return None

    def _effects(self) -> Effects:
        try:
            result = self.tracer.result
        except PassClosedError:
            self.notes.append("The pass was stopped, so there is no output to compare.")
            return Effects()
        if self.bare is None:
            if effects.last_logits(result) is not None or self.request.time:
                self.notes.append(f"The run was not compared with the bare model: {self.obstacle}.")
            return Effects()
        try:
            if self.operands.tokens is None:
                return effects.one_forward(self.bare, result, self.recorder, self.operands.model)
            return effects.generation(self.bare, self.capture, result, self.operands.model)
        except CannotRepeatError as error:
            self.notes.append(f"The run was not compared with the bare model: {error}.")
        except Exception as error:  # a card must not fail a run that went well
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            self.notes.append(f"The run could not be compared with the bare model ({what}).")
        return Effects()

    def _timing(self, run_s: float) -> Timing | None:
        if self.bare is None:
            return None
        bare = self.bare
        try:
            if self.operands.tokens is not None:
                generate: Any = self.operands.model.generate
                bare = Bare.of(generate(*self.operands.args, max_new_tokens=self.operands.tokens))
            times_s = bare.times_s(_REPEATS, _PATIENCE_S)
        except Exception as error:
            self.notes.append(f"The bare run could not be timed ({type(error).__name__}: {error}).")
            return None
        return Timing(run_s, statistics.median(times_s), len(times_s), self.is_first_pass)

    def _input(self) -> tuple[tuple[tuple[str, ...], ...], str]:
        """The prompts' tokens, or a plain input's kind."""
        inputs = self.bare.kwargs if self.bare is not None else {}
        ids = inputs.get("input_ids")
        if not isinstance(ids, torch.Tensor) or ids.dim() != 2:
            return (), ", ".join(map(describe, self.operands.args))
        mask = inputs.get("attention_mask")
        real = torch.ones_like(ids) if mask is None else mask
        rows = [row[keep.bool()].tolist() for row, keep in zip(ids, real, strict=True)]
        return tuple(effects.decoded(self.operands.model, row) for row in rows), ""
