"""Generations that are recorded as they run, and run again from a step with another token or edit.

    runs = Runs(model, "Once upon a time", max_new_tokens=20)
    runs.start(runs.begin(), heard)                 # heard(branch, number, step) after each
    runs.fork(runs.plan(0, 5, token=" king"), heard)

A fork runs `generate` on the prompt and the tokens before the step, so an edit changes what the
model makes of those too, as it would have from the beginning.
"""

import sys
import textwrap
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from insitu.errors import UnknownModuleError, UsageError
from insitu.methods.metrics import kl
from insitu.methods.prompts import labels_of, one_prompt, token_id
from insitu.methods.readout import read_out
from insitu.models.base import NNsight
from insitu.models.language import LanguageModel
from insitu.widgets.generation_record import Branch, Record, Step, Top

Heard = Callable[[Branch, int, Step], None]
"""Told a branch, the number of a step, and the step."""
Again = Callable[["Runs", "Fork", list[int], Heard], None]
"""Runs a branch from the prompt: told which ids are given, up to the token that is forced."""
EDIT_SHOWN = 40

_ONE_TEXT = {
    "num_beams": "beam search goes on from several texts at once",
    "num_return_sequences": "several texts come of one prompt",
    "assistant_model": "a helping model adds several tokens a step",
    "prompt_lookup_num_tokens": "several tokens are added a step",
    "streamer": "the view takes the tokens where a streamer would",
}
"""Settings of `generate` under which a step is not one token of one text."""


@dataclass(frozen=True)
class Fork:
    """A branch that is to be run: from which ids, and with which token before them."""

    branch: Branch
    forced: int | None
    count: int
    """How many tokens it may have of its own."""


class Runs:
    """A model, a prompt and settings; what each run of them gave is in `record`.

    Attributes:
        again: runs a branch where more than the model made the first text, as a cell's code does.
    """

    def __init__(
        self, model: LanguageModel, prompt: Any, max_new_tokens: int, top: int,
        settings: dict[str, Any],
    ) -> None:  # fmt: skip
        _require_one_text({**model.generation_settings, **settings})
        ids, labels = one_prompt(model, prompt, "watch_generation")
        self._model = weakref.ref(model)
        self._settings = settings
        self._top = top
        self._count = max_new_tokens
        self._ids: list[int] = ids[0].tolist()
        self._device = ids.device
        self.is_stopped = False
        self.again: Again | None = None
        layers = range(len(layers_of(model)))
        self.record = Record(type(model._module).__name__, labels, layers)

    @property
    def model(self) -> LanguageModel:
        """The model.

        Raises:
            UsageError: it was deleted.
        """
        model = self._model()
        if model is None:
            raise UsageError(
                "the model of this generation is gone.",
                "the last name for it was deleted, and the view does not keep it alive.",
                "keep a name for the model, and watch a new generation.",
            )
        return model

    def begin(self, edit: Any = None) -> Branch:
        """Begin the main branch; nothing is run yet."""
        given = None if edit is None else _edit(edit)
        return self.record.branch(why="main" if edit is None else _named(edit), edit=given)

    def start(self, branch: Branch, heard: Heard) -> None:
        """Generate from the prompt, and record each step."""
        self._run(branch, self._ids, self._count, heard)

    def plan(
        self, number: int, step: int, *, token: str | int | None = None, edit: Any = None,
        max_new_tokens: int | None = None,
    ) -> Fork:  # fmt: skip
        """Begin a branch that leaves another at a step; nothing is run yet.

        Raises:
            UsageError: there is no such branch or step, or nothing is different.
            InputError: the token is not one.
        """
        known = self.record.steps(self.record.at(number))
        if not 0 <= step <= len(known):
            raise UsageError(
                f"there is no step {step} to fork at.",
                f"branch {number} has {len(known)} steps, counted from 0.",
                "fork at one of them, or at the step after the last.",
            )
        if token is None and edit is None:
            raise UsageError(
                "a fork needs a difference.",
                "with the same token and the same model the text goes on as it did.",
                'give another token, or an edit: view.fork(3, token=" Paris").',
            )
        left = self.record.owner(self.record.at(number), step)
        forced = None if token is None else token_id(self.model, token)
        given = left.edit if edit is None else _edit(edit)
        said = [] if forced is None else [repr(labels_of(self.model, [forced])[0])]
        said += [] if edit is None else [_named(edit)]
        branch = self.record.branch(
            parent=left.number, start=step, why=" and ".join(said), edit=given
        )
        count = self._count - step if max_new_tokens is None else max_new_tokens
        return Fork(branch, forced, max(count, 1))

    def fork(self, fork: Fork, heard: Heard) -> Branch:
        """Run a planned branch."""
        branch, parent = fork.branch, self.record.at(fork.branch.parent or 0)
        before = self.record.steps(parent)
        given = [int(step.id or 0) for step in before[: branch.start]]
        if self.again is not None:
            self.is_stopped = False
            self.again(self, fork, given if fork.forced is None else [*given, fork.forced], heard)
            return branch
        ids = self._ids + given
        if fork.forced is None:
            self._run(branch, ids, fork.count, heard)
            return branch
        known = before[branch.start] if branch.start < len(before) else None
        if known is None or branch.edit is not parent.edit:  # another model: ask it first
            asked = Branch(branch.number, branch.parent, branch.start, edit=branch.edit)
            self._run(asked, ids, 1, lambda *_: None)
            known = asked.own[0]
        first = self._forced(known, fork.forced, branch, ids)
        branch.own.append(first)
        heard(branch, branch.start, first)
        if fork.count > 1 and fork.forced not in self._ends():
            self._run(branch, [*ids, fork.forced], fork.count - 1, heard)
        return branch

    def stop(self) -> None:
        """End the run that is under way after its step."""
        self.is_stopped = True

    def _run(self, branch: Branch, ids: list[int], count: int, heard: Heard) -> None:
        self.is_stopped = False
        model = edited(self.model, branch.edit)
        layers = layers_of(model)
        given = torch.tensor([ids], device=self._device)
        settings = {**self._settings, "max_new_tokens": count}
        with torch.no_grad(), model.generate(given, **settings) as tracer:
            for _ in tracer.iter[:]:
                streams = [layer.resid_post[0, -1].clone() for layer in layers]
                logits = model.output.logits[0, -1].float()
                chosen = int(model.generator.streamer.output.flatten()[0])
                step = step_of(model, streams, logits, chosen, self._top)
                branch.own.append(step)
                heard(branch, branch.start + len(branch.own) - 1, step)
                if self.is_stopped:
                    tracer.stop()

    def _forced(self, known: Step, token: int, branch: Branch, ids: list[int]) -> Step:
        """A step with another token than the model chose, and that one's probability."""
        chance = next((chance for _, number, chance in known.top if number == token), None)
        if chance is None:
            model = edited(self.model, branch.edit)
            with torch.no_grad(), model.trace(torch.tensor([ids], device=self._device)):
                logits = model.output.logits[0, -1].float()
            chance = float(logits.softmax(-1)[token])
        text = labels_of(self.model, [token])[0]
        return replace(known, token=text, id=token, chance=chance, is_forced=True)

    def _ends(self) -> list[int]:
        """The tokens after which a generation ends."""
        config = (
            self._settings.get("generation_config") or self.model._transformer.generation_config
        )
        ends = self._settings.get("eos_token_id", getattr(config, "eos_token_id", None))
        return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def step_of(
    model: LanguageModel, streams: list[Tensor], logits: Tensor, chosen: int, top: int
) -> Step:
    """What is known of a step, for a record.

    Args:
        model: the one that made it; its lens reads the layers.
        streams: what each layer gave at the last position, `[d_model]`; none is left out.
        logits: the prediction, `[d_vocab]`.
        chosen: the id of the token that was chosen.
        top: how many of the likeliest tokens are told.
    """
    logprobs = logits.log_softmax(-1)
    chances = logprobs.exp()
    best = chances.topk(min(top, len(chances)))
    entropy = -torch.where(chances > 0, chances * logprobs, 0.0).sum()
    ids = [chosen, *best.indices.tolist()]
    values: tuple[Any, ...] = ()
    if streams:
        lens = read_out(model, torch.stack([it.to(logits.device) for it in streams])).float()
        likeliest = lens.softmax(-1).max(-1)
        ids += likeliest.indices.tolist()
        far = kl(lens, logits)
        values = tuple(likeliest.values.tolist()), tuple(far.tolist())
    token, *words = labels_of(model, ids)
    count = len(best.indices)
    tops: tuple[Top, ...] = tuple(zip(words, ids[1:], best.values.tolist(), strict=False))[:count]
    return Step(
        token, chosen, float(chances[chosen]), float(entropy), tops, tuple(words[count:]), values
    )


def layers_of(model: LanguageModel) -> list[Any]:
    """The layers a lens can read; none where a model's have no standard names."""
    try:
        layers, _, _ = list(model.layers), model.final_norm, model.unembed
    except UnknownModuleError:
        return []
    return layers


# Edits --------------------------------------------------------------------------------------------


def _edit(given: Any) -> Any:
    """An edit as it is kept: a function of the model, or an edited wrapper."""
    if isinstance(given, str):
        return _function(given)
    if callable(given):  # a wrapper is one too
        return given
    raise UsageError(
        f"an edit was given as {type(given).__name__}.",
        "it is a function of the model, lines of code, or what model.edit() gave.",
        'write view.fork(3, edit="model.layers[2].mlp_out[:] = 0").',
    )


def _function(lines: str) -> Callable[[Any], None]:
    """Lines of code as a function of `model`; other names are the notebook's."""
    body = textwrap.indent(textwrap.dedent(lines).strip() or "pass", "    ")
    names = {"torch": torch, **vars(sys.modules["__main__"])}
    try:
        exec(compile(f"def edit(model):\n{body}", "<edit>", "exec"), names)
    except SyntaxError as error:
        raise UsageError(
            f"the edit is no Python: {error.msg}.",
            f"it reads {lines!r}.",
            "write what would stand in `with model.edit():`.",
        ) from error
    function: Callable[[Any], None] = names["edit"]
    function.__name__ = " ".join(lines.split())
    return function


def edited(model: Any, edit: Any) -> Any:
    """The model with an edit, as a wrapper of its own.

    Args:
        model: any wrapped model.
        edit: a function of it, lines of code, or an edited wrapper; None for none.
    """
    if edit is None or isinstance(edit, NNsight):
        return model if edit is None else edit
    function = _edit(edit)
    with model.edit() as changed:
        function(model)
    return changed


def _named(edit: Any) -> str:
    """An edit in a few words."""
    if isinstance(edit, LanguageModel):
        lines = [line for it in edit._edits for line in it.body.text.strip().splitlines()]
        name = "; ".join(line.strip() for line in lines) or "another wrapper"
    else:
        name = edit if isinstance(edit, str) else getattr(edit, "__name__", "an edit")
    name = " ".join(name.split())
    return name if len(name) <= EDIT_SHOWN else f"{name[: EDIT_SHOWN - 1]}…"


def _require_one_text(settings: dict[str, Any]) -> None:
    """Refuse settings under which a step is not one token of one text."""
    for name, why in _ONE_TEXT.items():
        if settings.get(name) not in (None, 1):
            raise UsageError(
                f"a generation with {name}={settings[name]!r} cannot be watched.",
                f"the view follows one text, a token a step: {why}.",
                f"leave {name} out." if name == "streamer" else f"give {name}=None.",
            )
