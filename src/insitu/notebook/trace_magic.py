"""`%%trace`: a cell whose body is the block.

%%trace model "The Eiffel Tower is in the city of"
model.transformer.h[2].output[:, -1] *= 2
logits = model.lm_head.output
"""

import contextlib
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from IPython.core.magic import no_var_expand
from IPython.display import display

from insitu.engine import backward_call
from insitu.errors import PassClosedError, UsageError
from insitu.notebook import card, operands
from insitu.notebook.cell import Body, compiled, ending
from insitu.notebook.forwards import synchronize
from insitu.notebook.lint import shown
from insitu.notebook.magics import edited, grads, kept_sites, scanned, views
from insitu.notebook.magics.generating_again import Kept
from insitu.notebook.magics.grads import Grads
from insitu.notebook.magics.streamed import Streamed
from insitu.notebook.request import Request, parse
from insitu.notebook.session import Session
from insitu.notebook.shown_errors import show_users_lines


class TraceMagic:
    """The magic of one shell. It hears of each cell first, to know the text the user wrote."""

    def __init__(self, ip: Any) -> None:
        self.ip = ip
        self.raw_cell = ""

    def hear(self, info: Any) -> None:
        """Remember the cell that is about to run, and say what its text shows to be wrong."""
        self.raw_cell = info.raw_cell or ""
        shown.before_cell(self.ip, info)

    @no_var_expand  # type: ignore[untyped-decorator]
    def trace(self, line: str, cell: str) -> None:
        """Run the cell's body inside a pass of a model, and show what it did.

            %%trace MODEL PROMPT [options]

        MODEL and PROMPT are Python expressions. The body is the block of
        `with model.trace(PROMPT) as tracer:`, run in place: its names stay in the notebook.

          --generate N     generate N tokens, with the body inside every step
          --invoke PROMPT  one prompt more in the same pass; may be there several times
          --scan           shapes alone: the body on fake tensors, nothing is computed
          --cache SITES    keep what modules return in `cache`: transformer.h.*, or all
          --grad EXPR      gradients of a number at every site the cell meets, in `grads`
          --edit NAME      keep the body as a lasting edit of the model, in NAME
          --view VIEW      end in a widget: generation, lens, cache, attention or tree
          --remote [URL]   run the body on a server; what it saves comes back
          --background     with --remote: go on at once, with the job in `job`
          --time           compare the run's time with the bare forward's
          --quiet          show no run card, and no findings
          --no-lint        show no findings
        """
        __tracebackhide__ = True
        try:
            self._trace(parse(line), line, cell)
        except BaseException as error:
            show_users_lines(error, self.ip)
            if isinstance(error, SyntaxError):  # of which IPython shows every frame
                error.__traceback__ = None
            raise

    def _trace(self, request: Request, line: str, cell: str) -> None:
        __tracebackhide__ = True
        whole = self._whole(line, cell)
        if request.lint and not request.quiet:
            shown.show(self.ip, whole)
        if request.remote:
            from insitu.notebook import remote_cell  # brings the HTTP client along

            remote_cell.run(self.ip, request, whole, cell)
            return
        if request.edit and not (request.prompt or request.invokes):
            edited.keep(self.ip, request.model, request.edit, cell)
            return
        found = operands.of(self.ip.user_ns, request, cell)
        body = compiled(self.ip, whole, cell)
        if request.scan:
            display(self._scan(found, body))
            return
        if request.view:
            views.check(request.view, found)
        session = Session(found, request)
        try:
            run = _Run(self.ip, session, request)
        except BaseException:
            session.tracer.give_call()  # it is not to be entered
            raise
        run_s = run.noted(body)
        if not request.quiet:
            card.show(session.card(run_s))
        for further in run.further():
            display(further)
        if request.edit:
            edited.keep(self.ip, request.model, request.edit, cell)

    def _scan(self, found: operands.Operands, body: Body) -> Any:
        """Run the body on fake tensors; the shapes it met."""
        __tracebackhide__ = True
        if found.invokes:
            raise UsageError(
                "--scan was given several inputs that are no texts.",
                "it finds the shapes of one input; joined ones differ in their rows alone.",
                "leave --invoke out, or use with tracer.invoke(...) in `with model.scan():`.",
            )
        scan, watch = found.model.scan(*found.args), scanned.Scanned()
        scan._tracer.watch = watch
        with scan as tracer:
            self.ip.user_ns["tracer"] = tracer
            body.run(self.ip)
        return watch.table(type(found.model._module).__name__)

    def _whole(self, line: str, cell: str) -> str:
        """The cell as the user wrote it, or its like when a program calls the magic."""
        if ending(self.raw_cell).endswith("\n" + cell):
            return self.raw_cell
        return f"%%trace {line}\n{cell}"


class _Run:
    """One run of a cell with what its options add to it."""

    def __init__(self, ip: Any, session: Session, request: Request) -> None:
        self.ip = ip
        self.session = session
        self.request = request
        self.grads = Grads(session.operands.model._module, session.tracer.watch)
        self.stream: Streamed | None = None
        if request.view == "generation":
            self.stream = Streamed(session, live=getattr(ip, "kernel", None) is not None)

    def through(self, body: Body) -> float:
        """Run the body inside the pass; the time it took."""
        __tracebackhide__ = True
        names, tracer = self.ip.user_ns, self.session.tracer
        names["tracer"] = tracer
        with ExitStack() as around:
            if self.request.grad:
                around.enter_context(self.grads)
                tracer.watch = self.grads
            began = time.perf_counter()
            enter = _with_backward if body.says("backward", names) else _plainly
            enter(tracer, lambda: self._act(body))
            synchronize()
            run_s = time.perf_counter() - began
            if self.request.grad:
                number = operands.expression(names, self.request.grad, "--grad")
                names["grads"] = self.grads.of(number, self.request.grad)
        if self.stream is not None:
            self.session.recorder.finish()
            ids = None
            with contextlib.suppress(PassClosedError):  # the cell stopped it
                ids = tracer.result
            is_known = not (self.request.quiet or self.session.recorder.trouble)
            self.stream.finish(ids, bool(self.session.recorder.writes) if is_known else None)
        return run_s

    def noted(self, body: Body) -> float:
        """Run it, and note it in the ledger where no card tells of it: it failed, or is quiet."""
        __tracebackhide__ = True
        began = time.perf_counter()
        try:
            run_s = self.through(body)
        except BaseException as error:
            self.session.note(time.perf_counter() - began, error)
            raise
        if self.request.quiet:
            self.session.note(run_s)
        return run_s

    def _act(self, body: Body) -> None:
        """What happens inside the pass: what the options ask for, and then the body."""
        __tracebackhide__ = True
        names, tracer = self.ip.user_ns, self.session.tracer
        for given in self.session.operands.invokes:
            with tracer.invoke(given):
                pass
        if self.request.cache:
            names["cache"] = tracer.cache(kept_sites.wanted(self.request.cache, names))
        if self.stream is not None:
            model = self.session.operands.model
            self.stream.begin(tracer, Kept(names, body, model, "cache" * bool(self.request.cache)))
        body.run(self.ip)

    def further(self) -> list[Any]:
        """What stands below the card."""
        found: list[Any] = []
        if self.request.grad and not self.request.quiet:
            found.append(grads.table(self.request.grad, self.ip.user_ns["grads"]))
        if self.request.cache and not self.request.quiet and self.request.view != "cache":
            found.append(self.ip.user_ns["cache"])
        if self.stream is not None:
            found.append(self.stream.view)  # which does not show twice in one cell
        elif self.request.view:
            found.append(views.made_of(self.request.view, self.session, self.ip.user_ns))
        return found


def _plainly(tracer: Any, act: Callable[[], None]) -> None:
    __tracebackhide__ = True
    with tracer:
        act()


def _with_backward(tracer: Any, act: Callable[[], None]) -> None:
    """A trace looks whether the code that enters it says `backward`; the cell's does, not ours."""
    __tracebackhide__ = True
    with tracer:
        act()
    _ = backward_call.backward


def register(ip: Any) -> Callable[[], None]:
    """Add `%%trace` to a shell; gives what takes it away again."""
    magic = TraceMagic(ip)
    cell_magics = ip.magics_manager.magics["cell"]
    before = cell_magics.get("trace")
    ip.events.register("pre_run_cell", magic.hear)
    ip.register_magic_function(magic.trace, "cell", "trace")

    def unregister() -> None:
        ip.events.unregister("pre_run_cell", magic.hear)
        del cell_magics["trace"]
        if before is not None:
            cell_magics["trace"] = before

    return unregister
