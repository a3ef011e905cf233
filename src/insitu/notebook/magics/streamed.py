"""`%%trace … --generate N --view generation`: a view that fills while the cell's own run goes on.

stream = Streamed(session, live=True)
stream.view                    # shown before the run, where there is a front end
stream.begin(tracer, kept)     # in the block: keeps what the layers return
stream.finish(ids, wrote)      # the last token

A fork of it runs the cell's body again, beside the notebook's names, in a generation whose tokens
before the fork are given: step numbers and what the body writes are those of the first run.
"""

import contextlib
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from insitu.engine.cache.activations import ActivationCache
from insitu.errors import PassClosedError
from insitu.models.language import LanguageModel
from insitu.notebook.magics import kept_sites
from insitu.notebook.magics.generating_again import Kept
from insitu.notebook.magics.widgets import found, made
from insitu.notebook.session import Session

TOP = 10
_RUNNING = "the cell is still running"


class Steps:
    """Turns what each step of a run chose from into a step of a branch, as the next one begins.

    Args:
        model: what generates, with its edits.
        branch: gets the steps from its start on.
        start: how many tokens the prompt has.
        forced: the number of the step whose token is given, not chosen; None for none.
        heard: told each step, as `GenerationView.show_step` is.
    """

    def __init__(
        self, model: LanguageModel, branch: Any, start: int, heard: Callable[..., None],
        forced: int | None = None,
    ) -> None:  # fmt: skip
        self._model = weakref.ref(model)
        self._branch = branch
        self._start = start
        self._heard = heard
        self._forced = forced
        self._step_of = found("generation_runs:step_of")
        self._layers = found("generation_runs:layers_of")(model)
        self._cache: ActivationCache | None = None
        self._waiting: tuple[torch.Tensor, list[torch.Tensor]] | None = None
        self._number = -1

    def begin(self, tracer: Any) -> None:
        """The run begins: keep what the layers return, after the block has changed it."""
        if self._layers:
            self._cache = tracer.cache(self._layers)

    def __call__(self, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """A step is about to choose; the token of the one before is known by now."""
        self._told(ids)
        self._number += 1
        if self._number >= self._branch.start:
            self._waiting = logits[0].detach().float(), self._streams()
        return logits

    def finish(self, ids: Any) -> None:
        """The run is over; of one that was stopped there are no ids."""
        if isinstance(ids, torch.Tensor):
            self._told(ids)
        self._cache, self._layers, self._waiting = None, [], None

    def _streams(self) -> list[torch.Tensor]:
        if self._cache is None:
            return []
        kept = []
        for layer in self._layers:
            value = self._cache[f"model.{layer._path}"][-1].output
            kept.append((value[0] if isinstance(value, tuple) else value)[0, -1].detach())
        return kept

    def _told(self, ids: torch.Tensor) -> None:
        model = self._model()
        if self._waiting is None or model is None:
            return
        (logits, streams), self._waiting = self._waiting, None
        if self._start + self._number >= ids.shape[1]:
            return
        chosen = int(ids[0, self._start + self._number])
        with torch.no_grad():
            step = self._step_of(model, streams, logits, chosen, TOP)
        if self._number == self._forced:
            step = replace(step, is_forced=True)
        self._branch.own.append(step)
        self._heard(self._branch, self._number, step)


class Streamed:
    """The view of a cell's generation, filled by its run; and the runs of its forks."""

    def __init__(self, session: Session, *, live: bool) -> None:
        model, prompt = session.operands.model, session.operands.args[0]
        assert isinstance(model, LanguageModel)
        self._is_live = live
        self._session = session
        tokens = session.operands.tokens
        self._runs = made("generation_runs:Runs", model, prompt, tokens, TOP, {})
        self.view = made("generation_view:GenerationView", self._runs.record, self._runs)
        self.view.set_trait("forks", False)
        self.view.set_trait("unforkable", _RUNNING)
        self._branch = self._runs.begin()
        start = len(self._runs.record.prompt)
        self._steps: Steps | None = Steps(model, self._branch, start, self.view.show_step)
        self._kept: Kept | None = None
        session.capture.heard = self.heard

    def begin(self, tracer: Any, kept: Kept) -> None:
        """The run begins; `kept` is its body, before it has run."""
        self._kept = kept
        if self._is_live:
            self.view.show_now()
        self._branch.state = "running"
        self.view.show_branches()
        if self._steps is not None:
            self._steps.begin(tracer)

    def heard(self, ids: torch.Tensor, logits: torch.Tensor) -> None:
        """A step is about to choose."""
        try:
            if self._steps is not None:
                self._steps(ids, logits)
        except Exception as error:  # a view is a guest of the run
            self._session.capture.heard = self._steps = None
            self._branch.state = "failed"
            self._branch.trouble = found("trouble:trouble_of")(error)
            self.view.show_branches()

    def finish(self, ids: Any, wrote: bool | None) -> None:
        """The run is over.

        Args:
            ids: all its tokens; None of one that was stopped.
            wrote: whether the body changed what the model computed; None where that is unknown.
        """
        if self._steps is not None:
            self._steps.finish(ids)
        if self._branch.state == "running":
            self._branch.state = "done" if ids is not None else "stopped"
        self._let_fork(wrote)
        self.view.show_branches()
        self.view.show_twins()

    def _let_fork(self, wrote: bool | None) -> None:
        kept, why_not = self._kept, ""
        if kept is not None and not kept.is_empty:
            if not kept.why_not:
                operands, cache = self._session.operands, self._session.request.cache
                start = len(self._runs.record.prompt)
                self._runs.again = Again(kept, operands.name, operands.args, cache, start)
            elif wrote is not False:  # without its body it would be another text
                why_not = f"a fork runs the cell once more, and cannot: {kept.why_not}"
        self.view.unforkable, self.view.forks = why_not, not why_not


@dataclass(frozen=True)
class Again:
    """Runs a branch of a cell's generation: `Runs.again`."""

    kept: Kept
    name: str
    """The model's in the cell's line."""
    args: tuple[Any, ...]
    cache: str
    start: int
    """How many tokens the prompt has."""

    def __call__(self, runs: Any, fork: Any, given: list[int], heard: Callable[..., None]) -> None:
        """Generate from the prompt with the first ids given, and record what comes after."""
        __tracebackhide__ = True
        branch, giving = fork.branch, _Giving(given)
        spans = found("generation_spans:spans_of")(runs.record, branch)
        model = found("generation_spans:edited_in")(runs.model, spans, lambda: giving.step)
        forced = None if fork.forced is None else branch.start
        steps = Steps(model, branch, self.start, heard, forced)
        with self.kept.same_chances():
            tracer = model.generate(
                *self.args,
                max_new_tokens=branch.start + fork.count,
                logits_processor=[steps, giving],
                stopping_criteria=[_Stopping(runs)],
            )
            with tracer:
                further = {}
                if self.cache:
                    wanted = kept_sites.wanted(self.cache, {self.name: model})
                    further["cache"] = tracer.cache(wanted)
                steps.begin(tracer)
                self.kept.run(tracer, model, **further)
        ids = None
        with contextlib.suppress(PassClosedError):  # the body stopped it
            ids = tracer.result
        steps.finish(ids)
        runs.is_stopped = runs.is_stopped or ids is None


class _Giving:
    """A logits processor that leaves one token to choose, while there are tokens given."""

    def __init__(self, given: Sequence[int]) -> None:
        self._given = given
        self.step = 0

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Called by transformers with the tokens so far and the scores of the next."""
        if self.step < len(self._given):
            scores = torch.full_like(scores, -torch.inf)
            scores[:, self._given[self.step]] = 0
        self.step += 1
        return scores


class _Stopping:
    """Ends a generation after the step in which its view's button was pressed."""

    def __init__(self, runs: Any) -> None:
        self._runs = runs

    def __call__(self, ids: torch.Tensor, scores: Any, **further: Any) -> torch.Tensor:
        """Called by transformers after each step: for each row, whether it ends."""
        return torch.full((ids.shape[0],), self._runs.is_stopped, device=ids.device)
