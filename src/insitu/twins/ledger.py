"""What was run: code, prompt, edits, what came of it; kept in memory, and in a file if wished.

    insitu.widgets.ledger                         # filled by %%trace, whatever came of it
    insitu.widgets.ledger.keep_in("runs.jsonl")   # from now on in a file too, a line a run
    insitu.widgets.ledger.add(code, prompt="…")   # a run of one's own

A run is told in words and numbers: no model, tensor or cache is kept by it.
"""

import difflib
import json
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import torch

from insitu.errors import InsituWarning
from insitu.twins import style

KEPT = 500
"""Runs that are remembered; the oldest go first."""
SHOWN = 50
_SETUP = "import insitu\n\n%load_ext insitu"


@dataclass(frozen=True)
class Entry:
    """One run."""

    number: int
    at: str
    """When it ended, as ISO 8601 in UTC."""
    code: str
    prompt: str = ""
    model: str = ""
    """The class of the model."""
    name: str = "model"
    """The variable it was in."""
    origin: str = ""
    """Where its weights are from."""
    seed: int = 0
    random: str = ""
    """Where torch's random numbers stood when it began (`twins.randomness`)."""
    tokens: int | None = None
    """How many tokens were to be generated; None for one forward."""
    edits: tuple[str, ...] = ()
    run_s: float = 0.0
    bare_s: float | None = None
    moved: float | None = None
    """How far the next token's distribution went from that of the bare model: total variation."""
    top: tuple[tuple[str, float], ...] = ()
    """The likeliest next tokens."""
    bare_top: tuple[tuple[str, float], ...] = ()
    """The same without the block."""
    failed: str = ""
    """What went wrong, in a line; empty of a run that ended well."""


class Ledger:
    """The latest runs, the oldest first."""

    def __init__(self, kept: int = KEPT) -> None:
        self._entries: deque[Entry] = deque(maxlen=kept)
        self._count = 0
        self._heard: list[weakref.WeakMethod[Callable[[], None]]] = []
        self._file: Path | None = None

    def add(self, code: str, **further: Any) -> Entry:
        """Note a run: its code, and whatever else an `Entry` holds."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self._count += 1
        further = {"at": at, "seed": torch.initial_seed(), **further}
        entry = _entry({**further, "number": self._count, "code": code})
        self._entries.append(entry)
        self._write(entry)
        self._tell()
        return entry

    def keep_in(self, path: str | Path) -> "Ledger":
        """Keep further runs in a file of JSON lines; those it holds already come first."""
        self._file = Path(path)
        if self._file.exists():
            lines = self._file.read_text(encoding="utf-8").splitlines()
            for known in map(_from_line, lines[-KEPT:]):
                if known is not None:
                    self._count += 1
                    self._entries.append(_entry({**known, "number": self._count}))
        self._tell()
        return self

    def clear(self) -> None:
        """Forget the runs in memory; a file keeps them."""
        self._entries.clear()
        self._tell()

    def on_change(self, heard: Callable[[], None]) -> None:
        """Have a method called when a run was added; it is held weakly."""
        self._heard.append(weakref.WeakMethod(heard))

    def __getitem__(self, number: int) -> Entry:
        for entry in self._entries:
            if entry.number == number:
                return entry
        raise LookupError(f"the ledger has no run {number}")

    def __iter__(self) -> Any:
        return iter(tuple(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return ledger_text(tuple(self))

    def _repr_html_(self) -> str:
        return ledger_html(tuple(self))

    def _write(self, entry: Entry) -> None:
        if self._file is None:
            return
        try:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(entry), ensure_ascii=False) + "\n")
        except OSError as error:  # a run that went well must not fail for its record
            warnings.warn(
                f"runs are no longer kept in {self._file}: {error}.", InsituWarning, stacklevel=3
            )
            self._file = None

    def _tell(self) -> None:
        for reference in tuple(self._heard):
            if (heard := reference()) is None:
                self._heard.remove(reference)
            else:
                heard()


ledger = Ledger()
"""The runs of this process."""


def _entry(told: dict[str, Any]) -> Entry:
    for name in ("edits", "top", "bare_top"):
        told[name] = tuple(tuple(it) if isinstance(it, list) else it for it in told.get(name, ()))
    return Entry(**told)


def _from_line(line: str) -> dict[str, Any] | None:
    """What a line of a file tells of a run; None for one that was cut short or is of another."""
    try:
        told = json.loads(line)
        _entry(dict(told))
    except (ValueError, TypeError):
        return None
    return dict(told)


# Two runs ---------------------------------------------------------------------------------------


def code_difference(first: str, second: str) -> list[tuple[str, str]]:
    """Line by line what two programs have: `" "` both, `"-"` the first, `"+"` the second."""
    told = difflib.ndiff(first.splitlines(), second.splitlines())
    return [(line[0], line[2:]) for line in told if line[0] != "?"]


def top_difference(first: Entry, second: Entry) -> list[tuple[str, float | None, float | None]]:
    """The likeliest tokens of two runs, with the probability in each where it is known."""
    one, other = dict(first.top), dict(second.top)
    tokens = sorted({**one, **other}, key=lambda it: -max(one.get(it, 0.0), other.get(it, 0.0)))
    return [(token, one.get(token), other.get(token)) for token in tokens]


def notebook_of(entries: Iterable[Entry]) -> dict[str, Any]:
    """A notebook (format 4.5) that does some runs again, in their order."""
    chosen = sorted(entries, key=lambda entry: entry.number)
    models = {entry.name: entry for entry in chosen}
    loads = "\n".join(_loading(entry) for entry in models.values())
    cells = [
        _cell("intro", "markdown", f"# {len(chosen)} run{'s' * (len(chosen) != 1)} of Insitu"),
        _cell("setup", "code", f"{_SETUP}\n\n{loads}".rstrip()),
    ]
    for entry in chosen:
        said = [f"**Run {entry.number}**, {entry.at}, seed {entry.seed}"]
        if entry.failed:
            said.append(f"failed: {entry.failed}")
        if entry.moved is not None:
            said.append(f"moved next-token probabilities by {entry.moved:.2f} TV")
        cells.append(_cell(f"about-{entry.number}", "markdown", "; ".join(said) + "."))
        cells.append(_cell(f"run-{entry.number}", "code", entry.code.rstrip()))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": cells}


def _loading(entry: Entry) -> str:
    if not entry.name.isidentifier():
        return f"# the model of run {entry.number}: {entry.name}"
    if not entry.origin:
        return f"# {entry.name} = …        # a wrapped {entry.model or 'model'}"
    return f"{entry.name} = insitu.LanguageModel({entry.origin!r})"


def _cell(name: str, kind: str, source: str) -> dict[str, Any]:
    cell: dict[str, Any] = {"id": name, "cell_type": kind, "metadata": {}, "source": source}
    return cell if kind == "markdown" else {**cell, "execution_count": None, "outputs": []}


# Twins ------------------------------------------------------------------------------------------


def failure(error: BaseException) -> str:
    """What a run raised, in a line."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")


def summary(entry: Entry) -> tuple[int, str, str, str, int, float | None, str, float, str]:
    """A run: number, time, model, prompt, edits, moved, likeliest token, seconds, failure."""
    likeliest = entry.top[0][0] if entry.top else ""
    time_of_day = entry.at[11:19]
    return (entry.number, time_of_day, entry.model, entry.prompt[:80], len(entry.edits),
            entry.moved, likeliest, entry.run_s, entry.failed)  # fmt: skip


def ledger_text(entries: Sequence[Entry]) -> str:
    """A line a run, the latest last."""
    if not entries:
        return "No runs yet: %%trace fills the ledger."
    return "\n".join(" · ".join(_words(entry)) for entry in entries[-SHOWN:])


def ledger_html(entries: Sequence[Entry]) -> str:
    """A row a run, its code folded below it."""
    if not entries:
        return style.page(style.CARD, f"<p>{ledger_text(entries)}</p>")
    rows = "".join(
        f"<details><summary>{escape(' · '.join(_words(entry)))}</summary>"
        f"<pre><code>{escape(entry.code)}</code></pre></details>"
        for entry in entries[-SHOWN:]
    )
    return style.page(style.CARD, f'<div class="head"><b>{len(entries)} runs</b></div>{rows}')


def _words(entry: Entry) -> list[str]:
    number, at, model, prompt, edits, moved, likeliest, run_s, failed = summary(entry)
    told = [f"{number}", at, model, prompt, f"{edits} edit{'s' * (edits != 1)}"]
    told += [f"moved {moved:.2f} TV"] if moved is not None else []
    told += [f"then {likeliest!r}"] if likeliest else []
    told += [f"failed: {failed}"] if failed else []
    return [*(it for it in told if it), f"{run_s:.3g} s"]
