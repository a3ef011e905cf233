"""What was run, in a table: code, prompt, edits, times; two compared; run again; as a notebook.

insitu.widgets.ledger                # what %%trace filled
RunLedger()                          # the view of it
view.compare(3, 5)                   # lines of code, and likeliest tokens, side by side
view.export("runs.ipynb", [3, 5])
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import traitlets

from insitu.errors import UsageError
from insitu.twins import randomness
from insitu.twins.ledger import (
    Entry,
    Ledger,
    code_difference,
    ledger,
    ledger_html,
    ledger_text,
    notebook_of,
    summary,
    top_difference,
)
from insitu.widgets import main_thread
from insitu.widgets.base import Widget
from insitu.widgets.trouble import trouble_of


class RunLedger(Widget):
    """The runs of a ledger, the latest first.

    RunLedger()

    Args:
        of: a ledger; that of this process without it.

    Attributes:
        chosen: the numbers of the runs that are ticked.
    """

    front_end = "run_ledger"
    rows = traitlets.List().tag(sync=True)
    """A row a run: number, time, model, prompt, edits, moved, likeliest token, seconds, failure."""
    chosen = traitlets.List(traitlets.Int()).tag(sync=True)
    shown = traitlets.List(traitlets.Int()).tag(sync=True)
    """The run whose details are below the table, or the two that are compared."""
    busy = traitlets.Int(0).tag(sync=True)
    """The number of the run that is run again; 0 for none."""
    trouble = traitlets.Dict().tag(sync=True)

    def __init__(self, of: Ledger | None = None) -> None:
        if not isinstance(of, Ledger | None):
            raise UsageError(
                f"a run ledger shows a ledger, not {type(of).__name__}.",
                "it tells code, prompts and numbers of runs.",
                "leave it out to see the runs of %%trace: RunLedger().",
            )
        self._ledger = ledger if of is None else of
        super().__init__(rows=self._rows())
        self._ledger.on_change(self._changed)

    def compare(self, first: int, second: int) -> dict[str, Any]:
        """Two runs: the lines of code that differ, and the likeliest tokens of both."""
        one, other = self._ledger[first], self._ledger[second]
        return {
            "code": code_difference(one.code, other.code),
            "top": _known(top_difference(one, other)),
            "facts": [
                [name, _worded(getattr(one, name)), _worded(getattr(other, name))]
                for name in ("prompt", "model", "seed", "tokens", "moved", "run_s", "failed")
                if getattr(one, name) != getattr(other, name)
            ],
        }

    def again(self, number: int, seeded: bool = False) -> None:
        """Run the cell of a run again, as it was written, in the notebook as it is now.

        Args:
            number: that of the run.
            seeded: give torch the random numbers of that run again.

        Raises:
            UsageError: there is no notebook, or no such run.
        """
        entry, shell = self._entry(number), main_thread.shell()
        if shell is None:
            raise UsageError(
                "a run can be run again in a notebook only.",
                "its code is a cell, and there is no IPython here.",
                f"print(view.code({number})) shows it.",
            )
        if seeded:
            if entry.random:
                randomness.restore(entry.random)
            else:
                torch.manual_seed(entry.seed)
        shell.run_cell(entry.code, store_history=True).raise_error()

    def code(self, number: int) -> str:
        """The code of a run."""
        return self._entry(number).code

    def export(self, path: str | Path, numbers: Iterable[int] | None = None) -> Path:
        """Write runs as a notebook; those that are ticked without numbers."""
        path = Path(path)
        book = notebook_of(map(self._entry, self.chosen if numbers is None else numbers))
        path.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return path

    def text(self) -> str:
        """A line a run."""
        return ledger_text(tuple(self._ledger))

    def html(self) -> str:
        """The same as HTML without scripts."""
        return ledger_html(tuple(self._ledger))

    def answer_about(self, given: dict[str, Any]) -> dict[str, Any]:
        """More of one run."""
        entry = self._entry(given["number"])
        return {
            "code": entry.code, "prompt": entry.prompt, "edits": list(entry.edits),
            "seed": str(entry.seed), "run_s": entry.run_s, "bare_s": entry.bare_s,
            "at": entry.at, "failed": entry.failed,
            "top": _known(entry.top), "bare_top": _known(entry.bare_top),
        }  # fmt: skip

    def answer_compare(self, given: dict[str, Any]) -> dict[str, Any]:
        """Two runs side by side."""
        return self.compare(given["first"], given["second"])

    def answer_export(self, given: dict[str, Any]) -> str:
        """Runs as a notebook, for the page to save."""
        return json.dumps(notebook_of(map(self._entry, given["numbers"])), indent=1)

    def answer_again(self, given: dict[str, Any]) -> None:
        """Run one again when the kernel's main thread is free."""
        number = self._entry(given["number"]).number
        self.busy, self.trouble = number, {}
        seeded = bool(given.get("seeded"))
        main_thread.call(lambda: self._run(number, seeded), self._failed)

    def _run(self, number: int, seeded: bool) -> None:
        self.again(number, seeded)
        self.busy = 0

    def _failed(self, error: BaseException) -> None:
        """What was asked for raised: it reaches the view that asked."""
        self.trouble, self.busy = trouble_of(error), 0

    def _entry(self, number: int) -> Entry:
        try:
            return self._ledger[number]
        except LookupError as error:
            raise UsageError(
                f"{error}.",
                f"it holds {len(self._ledger)}, the oldest of which go first.",
                "choose one of those in sight.",
            ) from None

    def _rows(self) -> list[Any]:
        return [_known(summary(entry)) for entry in reversed(tuple(self._ledger))]

    def _changed(self) -> None:
        self.rows = self._rows()
        known = {row[0] for row in self.rows}
        self.chosen = [number for number in self.chosen if number in known]
        self.shown = [number for number in self.shown if number in known]


def _known(told: Any) -> Any:
    """The same as lists, with None for NaN and infinities, which a model may well predict."""
    if isinstance(told, (list, tuple)):
        return [_known(part) for part in told]
    return None if isinstance(told, float) and not math.isfinite(told) else told


def _worded(fact: Any) -> str:
    return f"{fact:.4g}" if isinstance(fact, float) else str(fact)
