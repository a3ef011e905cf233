"""A generation that fills token by token while it runs, and forks at any step.

view = watch_generation(model, "Once upon a time", max_new_tokens=20)
view.fork(5, token=" king")                         # another token at step 5
view.fork(5, edit="model.layers[2].mlp_out[:] = 0") # or another model from there on
view.branches[1].own[0].top                         # what was likely at its first step
GenerationView.of(["a", "b"], entropy=[0.2, 1.4]) # plain data
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, Unpack

import traitlets
from torch import Tensor

from insitu.errors import UsageError
from insitu.methods.result import Result
from insitu.models.language import LanguageModel
from insitu.twins.generation import generation_html, generation_text
from insitu.widgets import main_thread, numbers, showing
from insitu.widgets.base import Widget
from insitu.widgets.generation_record import TEXT_MAX, Branch, Measure, Record, Step
from insitu.widgets.generation_runs import Runs
from insitu.widgets.trouble import Trouble
from insitu.widgets.words import words

NUMBERS_SENT = 2000
"""About so many numbers are sent at once to a view that opens late."""
PROMPT_SENT = 2000
"""So many tokens before the first step are shown."""


class Further(TypedDict, total=False):
    """What may be known of a step beside its token."""

    texts: Sequence[str]
    chance: float
    entropy: float
    top: Sequence[tuple[str, float]]


class GenerationView(Widget):
    """Tokens as they are generated, with what each layer would have said; forks at a step.

        view = watch_generation(model, "Once upon a time")

    Select a step in the view, or by `insitu.selection.step = 3`; click one of its likely tokens to
    go on with that one instead.

    Args:
        record: what is known of it; more may be added.
        runs: what runs its forks; without, there are none.

    Attributes:
        branches: the ways the text went on: `view.branches[0].own` are the steps of the main one.
        focus: the number of the branch that is looked at.
    """

    front_end = "generation_view"
    title = traitlets.Unicode().tag(sync=True)
    prompt = traitlets.List().tag(sync=True)
    layers = traitlets.List().tag(sync=True)
    measures = traitlets.List().tag(sync=True)
    lanes = traitlets.List().tag(sync=True)
    """The branches but for their steps: number, parent, start, why, state, trouble."""
    latest = traitlets.Dict().tag(sync=True)
    """The step that came last: branch, number, step. Earlier ones are asked for."""
    focus = traitlets.Int(0).tag(sync=True)
    forks = traitlets.Bool(False).tag(sync=True)
    unforkable = traitlets.Unicode().tag(sync=True)
    """Why it cannot be forked, though there is a model."""
    measure = traitlets.Int(0).tag(sync=True)
    """Which of `measures` is shown; kept here, as a host builds a view anew at its cell's end."""
    draft = traitlets.Dict().tag(sync=True)
    """What is typed in the form for a fork: `token`, `edit`. Kept for the same."""

    def __init__(self, record: Record, runs: Runs | None = None) -> None:
        self.record = record
        self._runs = runs
        super().__init__(
            title=record.title,
            prompt=words(record.prompt[-PROMPT_SENT:], TEXT_MAX),
            layers=words(record.layers),
            measures=[vars(measure) for measure in record.measures],
            lanes=[branch.told() for branch in record.branches],
            forks=runs is not None,
        )

    @classmethod
    def of(
        cls, tokens: Sequence[str] = (), values: Any = None, *, prompt: Sequence[str] = (),
        quantity: str = "value", **columns: Any,
    ) -> "GenerationView":  # fmt: skip
        """A view of plain data; `view.add(…)` adds a step as it comes.

            GenerationView.of([" Paris", "."], torch.rand(2, 6), entropy=[0.1, 1.2])

        Args:
            tokens: one a step.
            values: a number for each step and layer, `[step, layer]`.
            prompt: the tokens before them.
            quantity: what the values are.
            **columns: for each step one of what `add` takes: `texts`, `chance`, `entropy`, `top`.

        Raises:
            UsageError: they are not as many as there are tokens.
        """
        told = {name: _column(column) for name, column in columns.items() if column is not None}
        if values is not None:
            told["values"] = _grid(values)
        for name, column in told.items():
            if len(column) != len(tokens):
                raise UsageError(
                    f"{name} has {len(column)} steps, and there are {len(tokens)} tokens.",
                    "each step has one token.",
                    "give one of them for each.",
                )
        limits = (0.0, 1.0) if quantity == "probability" else None
        view = cls(Record("Generation", list(prompt), (), [Measure(quantity, limits=limits)]))
        view.record.branch(why="main", state="done")
        view.show_branches()
        for number, token in enumerate(tokens):
            step = view._step(token, {name: column[number] for name, column in told.items()})
            view.branches[0].own.append(step)
        return view

    def add(
        self, token: str, *, values: Any = (), branch: int = 0, **further: Unpack[Further]
    ) -> None:
        """Add a step that has come: `view.add(" Paris", chance=0.9, entropy=0.3)`.

        Args:
            token: the one that was chosen.
            values: a number a layer.
            branch: the number of the branch it belongs to.
            **further: `texts`, a word a layer; `chance` of the token; `entropy` in nats; `top`, the
                likeliest tokens with their probabilities.

        Raises:
            UsageError: there is no such branch, or the numbers are not as many as the layers.
        """
        chosen = self.record.at(branch)
        step = self._step(token, {"values": values, **further})
        chosen.own.append(step)
        self.show_step(chosen, chosen.start + len(chosen.own) - 1, step)

    def _step(self, token: str, further: Mapping[str, Any]) -> Step:
        """A step of plain data; the first that has layers says how many there are."""
        given = further.get("values", ())
        is_empty = isinstance(given, tuple) and not given
        row = () if is_empty else tuple(numbers.plain(given)[0].flatten().tolist())
        texts = tuple(map(str, further.get("texts", ())))
        many = {len(it) for it in (row, texts) if it}
        if not self.record.layers and many:
            self.record.layers = range(max(many))
            self.layers = [str(layer) for layer in self.record.layers]
        if many - {len(self.record.layers)}:
            raise UsageError(
                f"a step was given {' and '.join(map(str, sorted(many)))} layers.",
                f"this view has {len(self.record.layers)}, as its first step had.",
                "give a number and a word for each layer.",
            )
        likely = tuple((str(text), None, float(chance)) for text, chance in further.get("top", ()))
        chance, entropy = (float(further.get(name, math.nan)) for name in ("chance", "entropy"))
        return Step(str(token), None, chance, entropy, likely, texts, (row,) if row else ())

    # What there is ---------------------------------------------------------------------------

    @property
    def branches(self) -> list[Branch]:
        """The main way the text went on, and those that left it."""
        return self.record.branches

    def result(self, branch: int = 0) -> Result:
        """Layers by steps of a branch: the likeliest token's probability; `further` has the KL.

            view.result().plot()

        Raises:
            UsageError: there is no such branch, or nothing is known of layers.
        """
        return self.record.result(self.record.at(branch))

    def text(self) -> str:
        """The prompt, the branches and their steps, as text."""
        return generation_text(self.record)

    def html(self) -> str:
        """The same as tables, with the layers of the main branch, without scripts."""
        main = self.branches[:1]
        has_layers = bool(main and main[0].own and self.record.layers)
        return generation_html(self.record, self.result()._repr_html_() if has_layers else "")

    # What is run -----------------------------------------------------------------------------

    def fork(
        self, step: int, token: str | int | None = None, *, edit: Any = None, branch: int = 0,
        max_new_tokens: int | None = None,
    ) -> Branch:  # fmt: skip
        """Go on from a step with another token, or with an edited model; both ways are shown.

            view.fork(3, " Paris")
            view.fork(3, edit=lambda model: model.layers[2].resid_post[:, -1].mul_(0))
            view.fork(3, edit=steer(model, vectors, layer=2))
            view.fork(1, " Rome", branch=2)             # a fork of a fork, with its edit

        `generate` runs again on the prompt and the tokens before the step. An edit therefore also
        sees those positions; write `[:, -1]` for the last one alone. Where a cell's code made the
        text (`%%trace … --view generation`), that code runs again too, from the prompt with the
        tokens before the step given; an edit then holds from the step on.

        Args:
            step: counted from 0; with a token, it is the step that has it.
            token: one token, as text or id.
            edit: a function of the model or lines of code, as would stand in `model.edit()`; or an
                edited wrapper, which is then kept.
            branch: the number of the branch that is left; its edit goes on unless another is given.
            max_new_tokens: how many tokens it has from that step on; as many as the first had left.

        Returns:
            The branch; `.own` are its steps.

        Raises:
            UsageError: there is nothing to fork, or it needs a difference.
            InputError: the token is not one.
        """
        runs = self._can_fork()
        fork = runs.plan(branch, step, token=token, edit=edit, max_new_tokens=max_new_tokens)
        self.follow(fork.branch, lambda: runs.fork(fork, self.show_step))
        return fork.branch

    def stop(self) -> None:
        """End the run that is under way, after its step; what came stays."""
        self._known().stop()

    def _can_fork(self) -> Runs:
        runs = self._known()
        if not self.forks:
            raise UsageError(
                "this generation cannot be forked.",
                f"{self.unforkable or 'its forks are switched off'}.",
                "watch one without it: watch_generation(model, prompt, edit=...).",
            )
        return runs

    def _known(self) -> Runs:
        if self._runs is None:
            raise UsageError(
                "this view cannot fork.",
                "it shows data it was given, and knows no model.",
                "watch a model: watch_generation(model, prompt).",
            )
        return self._runs

    # What comes ------------------------------------------------------------------------------

    def follow(self, branch: Branch, run: Callable[[], Any]) -> None:
        """Run a branch with its state told; an interrupt leaves what came so far."""

        def tell(state: str, trouble: Trouble | None) -> None:
            branch.state, branch.trouble = state, trouble
            self.show_branches()

        self.focus = branch.number
        try:
            showing.carry_out(run, tell, lambda: self._runs is not None and self._runs.is_stopped)
        finally:
            self.show_twins()

    def show_step(self, branch: Branch, number: int, step: Step) -> None:
        """Show a step of the record that has just come; `number` counts from the text's start."""
        self.latest = {"branch": branch.number, "number": number, "step": step.told()}

    def show_branches(self) -> None:
        """Show what has become of the branches."""
        self.lanes = [branch.told() for branch in self.branches]

    # Questions -------------------------------------------------------------------------------

    def answer_steps(self, given: dict[str, Any]) -> dict[str, Any]:
        """Steps of a branch that came before the view was there, some at a time."""
        own = self.record.at(given["branch"]).own
        first = max(int(given.get("first", 0)), 0)
        each = 1 + len(self.record.layers) + max((len(step.top) for step in own[:1]), default=0)
        part = own[first : first + max(NUMBERS_SENT // each, 1)]
        return {"steps": [step.told() for step in part], "more": first + len(part) < len(own)}

    def answer_fork(self, given: dict[str, Any]) -> dict[str, int]:
        """Plan a fork, and run it when the kernel's main thread is free."""
        runs = self._can_fork()
        number = given.get("id")
        token = given.get("token") or None if number is None else int(number)
        fork = runs.plan(
            given.get("branch", 0), int(given["step"]), token=token, edit=given.get("edit") or None
        )
        self.show_branches()
        main_thread.call(
            lambda: self.follow(fork.branch, lambda: runs.fork(fork, self.show_step)),
            failed=lambda _: None,  # its branch tells it, in the view where it was asked for
        )
        return {"branch": fork.branch.number}

    def answer_stop(self, given: dict[str, Any]) -> None:
        """End the run that is under way."""
        self.stop()


def watch_generation(
    model: LanguageModel, prompt: Any, *, max_new_tokens: int = 20, top: int = 10,
    edit: Any = None, **settings: Any,
) -> GenerationView:  # fmt: skip
    """Generate, and show each token as it comes: what was likely, and what each layer would say.

        view = watch_generation(model, "Once upon a time", max_new_tokens=20)
        view.fork(5, token=" king")

    In a notebook the view stands there before the first token. An interrupt, or its own button,
    leaves what came so far.

    Args:
        model: a language model; one without standard names is watched without its layers.
        prompt: one prompt, as for `model.generate`.
        max_new_tokens: how many tokens to add.
        top: how many of each step's likely tokens are kept.
        edit: a change of the model from the start, as for `view.fork`.
        **settings: for `model.generate`: `do_sample=True`, `temperature=0.7`, … Probabilities are
            those the model predicts, before such settings change them.

    Raises:
        InputError: several prompts.
        UsageError: settings under which a step is not one token of one text.
    """
    runs = Runs(model, prompt, max_new_tokens, top, settings)
    view = GenerationView(runs.record, runs)
    view.show_now()
    branch = runs.begin(edit)
    view.follow(branch, lambda: runs.start(branch, view.show_step))
    return view


def _grid(values: Any) -> list[list[float]]:
    """Numbers `[step, layer]` as lists."""
    grid = numbers.plain(values)[0]
    if grid.dim() == 1 and grid.numel() == 0:
        grid = grid.view(0, 0)
    if grid.dim() != 2:
        raise UsageError(
            f"the values have {grid.dim()} axes.",
            "a view of a generation shows steps by layers.",
            "give a tensor [step, layer], such as torch.rand(len(tokens), 6).",
        )
    found: list[list[float]] = grid.tolist()
    return found


def _column(values: Any) -> Any:
    """One thing a step: a tensor as its numbers, anything else as it is."""
    return numbers.plain(values)[0].flatten().tolist() if isinstance(values, Tensor) else values
