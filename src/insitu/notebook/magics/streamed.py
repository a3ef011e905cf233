"""`%%trace … --generate N --view generation`: a view that fills while the cell's own run goes on.

stream = Streamed(session, live=True)
stream.view                    # shown before the run, where there is a front end
stream.begin(tracer)           # in the block: keeps what the layers return
stream.finish(ids, wrote)      # the last token
"""

from typing import Any

import torch

from insitu.engine.cache.activations import ActivationCache
from insitu.models.language import LanguageModel
from insitu.notebook.magics.widgets import found, made
from insitu.notebook.session import Session

TOP = 10


class Streamed:
    """Turns what each step chose from into a step of the view, as the next one begins."""

    def __init__(self, session: Session, *, live: bool) -> None:
        model, prompt = session.operands.model, session.operands.args[0]
        assert isinstance(model, LanguageModel)
        self._is_live = live
        self._model = model
        self._step = found("generation_runs:step_of")
        self._layers = found("generation_runs:layers_of")(model)
        self._runs = made("generation_runs:Runs", model, prompt, session.operands.tokens, TOP, {})
        self.view = made("generation_view:GenerationView", self._runs.record, self._runs)
        self._branch = self._runs.begin()
        self._cache: ActivationCache | None = None
        self._start = len(self._runs.record.prompt)
        self._session = session
        session.capture.heard = self.heard
        self._waiting: tuple[torch.Tensor, list[torch.Tensor]] | None = None

    def begin(self, tracer: Any) -> None:
        """The run begins: keep what the layers return, after the cell has changed it."""
        if self._is_live:
            self.view.show_now()
        self._branch.state = "running"
        self.view.show_branches()
        if self._layers:
            self._cache = tracer.cache(self._layers)

    def heard(self, ids: torch.Tensor, logits: torch.Tensor) -> None:
        """A step is about to choose; the token of the one before is known by now."""
        try:
            self._told(ids)
            self._waiting = logits[0].detach().float(), self._streams()
        except Exception as error:  # a view is a guest of the run
            self._session.capture.heard = self._waiting = None
            self._branch.state = "failed"
            self._branch.trouble = found("trouble:trouble_of")(error)
            self.view.show_branches()

    def finish(self, ids: Any, wrote: bool) -> None:
        """The run is over; a cell that wrote cannot be forked, for a fork runs without it."""
        if isinstance(ids, torch.Tensor):
            self._told(ids)
        if self._branch.state == "running":
            self._branch.state = "done" if ids is not None else "stopped"
        self.view.forks = not wrote
        self.view.show_branches()
        self.view.show_twins()
        self._cache = None

    def _streams(self) -> list[torch.Tensor]:
        if self._cache is None:
            return []
        kept = []
        for layer in self._layers:
            value = self._cache[f"model.{layer._path}"][-1].output
            kept.append((value[0] if isinstance(value, tuple) else value)[0, -1].detach())
        return kept

    def _told(self, ids: torch.Tensor) -> None:
        if self._waiting is None:
            return
        (logits, streams), self._waiting = self._waiting, None
        number = len(self._branch.own)
        if self._start + number >= ids.shape[1]:
            return
        chosen = int(ids[0, self._start + number])
        with torch.no_grad():
            step = self._step(self._model, streams, logits, chosen, TOP)
        self._branch.own.append(step)
        self.view.show_step(self._branch, number, step)
