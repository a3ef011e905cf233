"""`%run open|step|until|where|finish|close`: a pass held open; anything else is IPython's `%run`.

%run open model "The Eiffel Tower is in the city of"
%run until model.transformer.h[2]
%run step 3
out = %run finish
"""

import re
from collections.abc import Callable
from typing import Any

from insitu.engine.held import Run
from insitu.engine.running import opened
from insitu.errors import InputError, PassClosedError, UsageError
from insitu.models.language import LanguageModel
from insitu.notebook.magics.line import Option, Syntax, Taken, taken
from insitu.notebook.magics.names import model_and_rest, node_of, value

WORDS = ("open", "step", "until", "where", "finish", "close")
SYNTAX = Syntax(
    "%run",
    "%run open [MODEL] PROMPT [--generate N] | step [N] | until SITE | where | finish | close",
    (
        Option("--generate", "N", "number", "it holds a generation of that many tokens open",
               "--generate 3"),
    ),
)  # fmt: skip
NAME = "run"
"""The variable that holds the pass."""
_SIDE = re.compile(r"(.*)\.(output|input|inputs)")


class RunMagic:
    """The magic of one shell, and IPython's own that it stands before."""

    def __init__(self, theirs: Callable[..., Any]) -> None:
        self.theirs = theirs
        self.held: Run | None = None

    def __call__(self, ip: Any, line: str) -> Any:
        """Hold a pass open across cells: a debugger for forward passes.

            %run open [MODEL] PROMPT [--generate N]     begin; the pass is kept in `run`
            %run step [N]                               the next module, or the next N
            %run until SITE                             as far as model.transformer.h[2].output
            %run where                                  where it stands
            %run finish                                 to the end; what the model returned
            %run close                                  leave it

        While it stands, cells read and edit what is there: model.transformer.h[2].output[:] *= 2

        Any other first word is a script, as ever:
        """
        words = line.split(maxsplit=1)
        if not words or words[0] not in WORDS:
            return self.theirs(ip.var_expand(line, 2))
        act = getattr(self, f"_{words[0]}")
        return act(ip, taken(SYNTAX, words[1] if len(words) > 1 else ""))

    def _open(self, ip: Any, found: Taken) -> Run:
        name, model, rest = model_and_rest(SYNTAX, found, ip.user_ns, 1)
        given = [value(SYNTAX, text, "prompt", ip.user_ns) for text in rest]
        settings = {}
        if count := found.value("--generate"):
            if not isinstance(model, LanguageModel):
                raise UsageError(
                    f"{name} cannot generate.",
                    f"it wraps {type(model._module).__name__}, and only a language model does.",
                    "leave --generate out.",
                )
            settings["generate"] = _number(value(SYNTAX, count, "number", ip.user_ns), count)
        try:
            self.held = ip.user_ns[NAME] = model.open(*given, **settings)
        except InputError as error:
            if given:
                raise
            example = f'write %run open {name} "The Eiffel Tower is in the city of".'
            raise InputError("%run open was given no prompt.", error.why, example) from None
        return self.held

    def _step(self, ip: Any, found: Taken) -> Run:
        text = found.words[0] if found.words else "1"
        return self._there(ip).step(_number(value(SYNTAX, text, "number", ip.user_ns), text))

    def _until(self, ip: Any, found: Taken) -> Run:
        run = self._there(ip)
        if len(found.words) != 1:
            raise UsageError(
                "%run until was given no site." if not found.words else
                f"%run until was given {len(found.words)} words.",
                "it runs to one site.",
                "write %run until model.transformer.h[2], or transformer.h.2.input.",
            )  # fmt: skip
        return run.until(self._site(ip, run, found.words[0]))

    def _where(self, ip: Any, found: Taken) -> Run:
        return self._there(ip)

    def _finish(self, ip: Any, found: Taken) -> Any:
        return self._there(ip).finish()

    def _close(self, ip: Any, found: Taken) -> None:
        run = self.held or ip.user_ns.get(NAME)
        if isinstance(run, Run):
            run.close()
        self.held = None

    def _site(self, ip: Any, run: Run, text: str) -> Any:
        """A site as `Run.until` takes it, of a path as it is written in code or in errors."""
        side = _SIDE.fullmatch(text)
        path, last = (side[1], side[2]) if side else (text, "output")
        if ".source." in path:
            return value(SYNTAX, path, "site", ip.user_ns)
        node = node_of(path, ip.user_ns)
        if node is None:
            return text
        is_root = node._parent is None
        return node if last == "output" else f"{'model' if is_root else node._path}.{last}"

    def _there(self, ip: Any) -> Run:
        """The pass that is held open: the variable's, or the one opened last here."""
        named = ip.user_ns.get(NAME)
        for run in (named, self.held):
            if isinstance(run, Run) and not run._pass.closed:
                return run
        known = named if isinstance(named, Run) else self.held
        over = f"the last one is {known.where}." if known is not None else "none was opened here."
        if opened:
            over = "one is, but not by %run: use the variable it was given to."
        raise PassClosedError(
            "no pass is held open.", over,
            'begin one: %run open model "The Eiffel Tower is in the city of".',
        )  # fmt: skip


def _number(given: Any, text: str) -> int:
    if type(given) is int and given > 0:
        return given
    raise UsageError(
        f"%run takes a number from 1 on, not {text}.",
        "it counts modules or tokens.",
        "write %run step 3.",
    )
