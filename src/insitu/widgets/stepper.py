"""A pass held open, driven from a view: where it stands, the value there, and ways to go on.

run = model.open("The Eiffel Tower is in the city of")
stepper = run.view()             # next operation, module, layer; run to a site; look; edit; finish
stepper.next_layer()             # the same from Python
stepper.edit("value * 2")
stepper.code                     # the statements that do what was done
stepper.result                   # what the model returned, after the end
"""

import threading
import time
from collections.abc import Callable
from typing import Any

import traitlets

from insitu.engine.held import Run
from insitu.engine.source.operations import Operation
from insitu.engine.stepping import node_of, to_input_of, to_next_of, to_next_operation
from insitu.errors import PassClosedError, UsageError
from insitu.twins.stepper import stepper_html, stepper_text
from insitu.widgets import main_thread, standing, standing_value
from insitu.widgets.base import Widget
from insitu.widgets.selection import selection
from insitu.widgets.trouble import trouble_of

SHARE = 10
"""A run that steps by itself is shown so seldom that it takes a tenth of the time."""


class Stepper(Widget):
    """Where a pass stands in the tree and the text, the value there, and buttons to go on.

    Stepper(model.open("The Eiffel Tower is in the city of"))

    Args:
        run: a pass held open. The view keeps it open, and lets go of it when it is over.

    Attributes:
        run: that pass; None when it is over.
        result: what the model returned, once the pass has finished.
        code: the statements that do what was done here.
    """

    front_end = "stepper"
    title = traitlets.Unicode().tag(sync=True)
    place = traitlets.Dict().tag(sync=True)
    """Where it stands: site, side, path, operation, step, state, and whether it can go on here."""
    blocks = traitlets.List().tag(sync=True)
    """The path of each layer's module, and its number."""
    rows = traitlets.List().tag(sync=True)
    """The tree about that place: path, name, class, depth, state, has modules below, is open."""
    source = traitlets.Dict().tag(sync=True)
    value = traitlets.Dict().tag(sync=True)
    picture = traitlets.Bytes().tag(sync=True)
    busy = traitlets.Unicode().tag(sync=True)
    """What was asked for and has not been done yet."""
    trouble = traitlets.Dict().tag(sync=True)
    code = traitlets.List().tag(sync=True)

    def __init__(self, run: Run) -> None:
        if not isinstance(run, Run):
            raise UsageError(
                f"a stepper drives a pass held open, not {type(run).__name__}.",
                "it goes on with the pass when a button is pressed.",
                'open one: Stepper(model.open("The Eiffel Tower is in the city of")).',
            )
        self.run: Run | None = run
        self.result: Any = None
        self._pass: Any = run._pass  # None when it is over: a view keeps no model alive
        self._words = standing_value.Words(run._root)
        self._layers = standing.layers(run._root._module)
        self._opened: set[str] = set()
        self._part = 0
        self._at: list[int] = []
        self._acts = False
        self._shown_s, self._took_s = 0.0, 0.0
        super().__init__(title=type(run._root._module).__name__, blocks=self._blocks(run))
        self.refresh()
        run.on_move(self._moved)
        self.observe(self._closed, "comm")
        self._hears_cells = main_thread.after_each_cell(self._after_cell)

    # What it can do --------------------------------------------------------------------------

    def next_operation(self) -> None:
        """Go on to the next operation that finishes with a tensor, in whatever forward."""
        self._act(lambda run: run.move(to_next_operation))

    def next_module(self) -> None:
        """Go on until the next module has finished."""
        self._act(lambda run: run.step())

    def next_layer(self) -> None:
        """Go on until the next block has finished, or the whole model."""
        self._act(lambda run: run.move(to_next_of(self._layers)))

    def to(self, path: str, side: str = "output", operation: str = "") -> None:
        """Run to a site: a module's path (empty for the whole model), or an operation in it.

        Args:
            path: as in `model.named_modules()`.
            side: `output` or `input`.
            operation: as it is written behind `.source.`.

        Raises:
            OutOfOrderError: the pass is already beyond it.
            UnknownModuleError: the path names no module.
        """

        def go(run: Run) -> None:
            node: Any = run._root._at_path(path) if path else run._root
            for name in operation.split(".source.") if operation else ():
                node = node.source[name]
            if side == "input":
                run.move(to_input_of(node))
            else:
                run.until(node)

        self._act(go)

    def edit(self, text: str, part: int | None = None) -> None:
        """Put something else in place of the value: an expression of `value`, or a statement.

            stepper.edit("value * 2")
            stepper.edit("value[:, -1] = 0")

        Args:
            text: it may name the notebook's variables, `value` and `torch`.
            part: which tensor of the value, by its number; the one in sight without it.

        Raises:
            WriteError: what it gives does not fit the site.
            UsageError: the pass stands nowhere, or there is no tensor.
        """
        number = self._part if part is None else part

        def write(run: Run) -> None:
            found = self._parts()
            site, _, side = standing.site_of(run._pass)
            if not 0 <= number < len(found):
                raise UsageError(
                    "there is no tensor to edit where the pass stands.",
                    f"it stands at {run.where}, where there are {len(found)}.",
                    "go on to a module's output first.",
                )
            was = run.value
            new = standing_value.edited(found[number].tensor, text)
            if standing.site_of(run._pass)[0] is not site:
                raise UsageError(
                    "the edit has moved the pass, and nothing was written.",
                    f"{text!r} reads a site that came later; the pass is now at {run.where}.",
                    "use values that are there: `value`, and what you kept before.",
                )
            node = site if isinstance(site, Operation) else node_of(run._pass, site)
            name = found[number].name
            if side == "input" and name == standing_value.FIRST:
                standing_value.write(node, "input", new)
                self._note_edit(f"{_spelled(node)}.input", text.strip(), "")
            else:
                side = "inputs" if side == "input" else side
                standing_value.write(node, side, standing_value.replaced(was, number, new))
                self._note_edit(f"{_spelled(node)}.{side}", text.strip(), name)

        self._act(write, moves=False)

    def finish(self) -> Any:
        """Run to the end; gives what the model returned."""
        self._act(lambda run: run.finish())
        return self.result

    def leave(self) -> None:
        """Close the pass where it stands: nothing more of it runs."""
        self._act(lambda run: run.close())

    # Showing ---------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Show where the pass stands now; what is changed by hand is seen after the cell."""
        run = self._pass
        if run is None:
            return
        began = time.monotonic()
        state = standing.state_of(run)
        with self.hold_sync():
            self.place = {**standing.told(run, self._layers), "state": state}
            self.rows = [list(row) for row in standing.around(run, self._opened)]
            self.source = standing.listing(run)
            if state in standing.OVER:
                self.result = run.result
                self.run = self._pass = None
                self._layers = {}
            self.value, self.picture = self._look()
        self._shown_s = time.monotonic()
        self._took_s = self._shown_s - began

    def text(self) -> str:
        """Where it stands, the tree about it, the lines that run and the value, as text."""
        return stepper_text(self.place, self.rows, self.value, self.source)

    def html(self) -> str:
        """The same as HTML without scripts."""
        return stepper_html(self.place, self.rows, self.value, self.source)

    def answer_do(self, given: dict[str, Any]) -> dict[str, bool]:
        """Do something when the kernel's main thread is free; what comes of it shows in traits."""
        name, further = given["what"], given.get("with") or {}
        if name not in _ACTS:
            raise LookupError(f"a stepper does no {name!r}")
        self.busy = name
        main_thread.call(lambda: self._do(name, further), self._failed)
        return {"waits": threading.current_thread() is not threading.main_thread()}

    def answer_into(self, given: dict[str, Any]) -> dict[str, Any]:
        """The text of a function that the one in sight calls."""
        if self._pass is None:
            raise LookupError("the pass is over")
        return standing.source_along(self._pass, given["trail"])

    # Inside ----------------------------------------------------------------------------------

    def _do(self, name: str, further: dict[str, Any]) -> None:
        self.trouble = {}
        _ACTS[name](self, **further)
        self.busy = ""

    def _failed(self, error: BaseException) -> None:
        """What was asked for raised: it reaches the view that asked."""
        self.trouble, self.busy = trouble_of(error), ""

    def _act(self, act: Callable[[Run], Any], moves: bool = True) -> None:
        """Do something with the pass, note it as code, and show what comes of it."""
        if self.run is None:
            raise PassClosedError(
                f"there is nothing to go on with: this pass {standing.OVER[self.place['state']]}.",
                "a pass that is over leaves nothing that could run.",
                "open another: model.open(...).view().",
            )
        self._acts = True
        try:
            act(self.run)
        finally:
            self._acts = False
            if moves:
                self._part, self._at = 0, []
                self._note_move()
            self.refresh()
            self._select()

    def _look_at(self, part: int = 0, at: list[int] | None = None) -> None:
        self._part, self._at = part, at or []
        self.value, self.picture = self._look()

    def _open(self, path: str) -> None:
        if self._pass is not None:
            self._opened ^= {path}
            self.rows = [list(row) for row in standing.around(self._pass, self._opened)]

    def _blocks(self, run: Run) -> list[list[str | int]]:
        found = run._root._module.named_modules()
        return [[path, self._layers[it]] for path, it in found if it in self._layers]

    def _parts(self) -> list[standing_value.Part]:
        run = self._pass
        if run is None:
            return standing_value.parts(self.result)
        if run.at_output is not None:
            return standing_value.parts(run.value)
        stands = run.at_input is not None
        return standing_value.parts_of_call((run.args, run.kwargs)) if stands else []

    def _look(self) -> tuple[dict[str, Any], bytes]:
        found = self._parts()
        if not found:
            return {"parts": [], "number": 0, "top": [], "text": "", "tokens": []}, b""
        self._part = min(self._part, len(found) - 1)
        tensor = found[self._part].tensor
        about, picture = standing_value.look(tensor, self._at)
        may_be_by_token = tensor.dim() == 3 and 0 < tensor.shape[1] <= standing_value.PIXELS
        tokens = standing.tokens(self._pass) if self._pass and may_be_by_token else []
        is_by_token = may_be_by_token and tensor.shape[1] == len(tokens)
        is_generated = self._pass is None and self.place["steps"]
        further = {
            "parts": [part.name for part in found], "number": self._part,
            "top": self._words.likeliest(tensor),
            "text": self._words.text(tensor) if is_generated else "",
            "tokens": tokens if is_by_token else [],
        }  # fmt: skip
        return {**about, **further}, picture

    def _moved(self) -> None:
        """The pass was moved by its handle: shown at once, or, in a fast loop, now and then."""
        waited_s = time.monotonic() - self._shown_s
        due = not self._hears_cells or waited_s > SHARE * self._took_s
        if not self._acts and self._pass is not None and (due or self._pass.closed):
            self.refresh()

    def _after_cell(self) -> None:
        if self.run is not None:
            self.refresh()

    def _closed(self, change: Any) -> None:
        """The view is closed: the pass is no longer kept open by it."""
        if change["new"] is None:
            self.run = self._pass = None
            self._layers = {}

    def _select(self) -> None:
        """Every other view follows to the layer and the step."""
        if self.place["layer"] is not None:
            selection.layer = self.place["layer"]
        if self.place["steps"]:
            selection.step = self.place["step"]

    def _note_move(self) -> None:
        line = _as_code(self._pass)
        if line and self.code[-1:] != [line]:
            self.code = [*self.code, line]

    def _note_edit(self, site: str, text: str, part: str) -> None:
        plain = [f"value = {site}", f"{site} = {text}" if _is_expression(text) else text]
        self.code = [*self.code, *([f"# {part} of {site}: {text}"] if part else plain)]


_ACTS: dict[str, Callable[..., Any]] = {
    "operation": Stepper.next_operation,
    "module": Stepper.next_module,
    "layer": Stepper.next_layer,
    "to": Stepper.to,
    "edit": Stepper.edit,
    "finish": Stepper.finish,
    "leave": Stepper.leave,
    "look": Stepper._look_at,
    "open": Stepper._open,
}


def _as_code(run: Any) -> str:
    """The statement that brings a pass to where it stands."""
    if run.ended:
        return "out = run.finish()"
    if run.closed:
        return "run.close()"
    site, _, side = standing.site_of(run)
    node = site if isinstance(site, Operation) else node_of(run, site)
    if node is None:
        return ""
    return f"{_spelled(node)}.inputs" if side == "input" else f"run.until({_spelled(node)})"


def _spelled(node: Any) -> str:
    """How a wrapped module or an operation is written in Python."""
    if not isinstance(node, Operation) and node._parent is None:
        return "model"
    words = node._path.removeprefix("model.source.").split(".")
    start = "model.source." + words.pop(0) if node._path.startswith("model.source.") else "model"
    return start + "".join(f"[{word}]" if word.isdigit() else f".{word}" for word in words)


def _is_expression(text: str) -> bool:
    try:
        compile(text, "", "eval")
    except SyntaxError:
        return False
    return True
