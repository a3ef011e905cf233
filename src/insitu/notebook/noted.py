"""A `%%trace` cell in the ledger of runs, told by its card.

note(operands, request, card, run_s)        # insitu.widgets.ledger has one run more
note_plain(operands, request, run_s)        # of one without a card: it failed, or was to be quiet
"""

import os
from typing import Any

from IPython.core.getipython import get_ipython

from insitu.notebook.card_facts import Card
from insitu.notebook.operands import Operands
from insitu.notebook.request import Request
from insitu.twins.ledger import failure, ledger

_DEMO = os.path.join("models", "demo", "checkpoint")


def note(operands: Operands, request: Request, card: Card, run_s: float, random: str) -> None:
    """Add a run to the ledger; `random` is where torch's random numbers stood before it."""
    change = card.effects.change
    visits = [card.visits[it] for it in card.written]
    ledger.add(
        _cell(request),
        prompt=request.prompt,
        model=card.model,
        name=operands.name,
        origin=_origin(operands.model._module),
        tokens=card.tokens,
        edits=tuple(f"{it.path}, line {it.line}: {it.written}" for it in visits),
        run_s=run_s,
        random=random,
        bare_s=None if card.timing is None else card.timing.bare_s,
        moved=None if change is None else change.moved,
        top=() if change is None else tuple((it.text, it.probability) for it in change.after),
        bare_top=() if change is None else tuple((it.text, it.probability) for it in change.before),
    )


def note_plain(
    operands: Operands, request: Request, run_s: float, random: str,
    error: BaseException | None = None,
) -> None:  # fmt: skip
    """Add a run that has no card: its cell, its time, and what it raised."""
    ledger.add(
        _cell(request),
        prompt=request.prompt,
        model=type(operands.model._module).__name__,
        name=operands.name,
        origin=_origin(operands.model._module),
        tokens=operands.tokens,
        run_s=run_s,
        random=random,
        failed="" if error is None else failure(error),
    )


def note_job(
    request: Request, model: str, run_s: float, error: BaseException | None = None
) -> None:
    """Add a run on a server to the ledger, told by its cell, its time, and what it raised."""
    failed = "" if error is None else failure(error)
    told = {"prompt": request.prompt, "model": model, "name": request.model}
    ledger.add(_cell(request), **told, run_s=run_s, failed=failed)


def _cell(request: Request) -> str:
    """The cell that runs, as the user wrote it; the line alone where no cell is known."""
    shell: Any = get_ipython()
    magics = {} if shell is None else shell.magics_manager.magics["cell"]
    heard = getattr(magics.get("trace"), "__self__", None)
    raw = str(getattr(heard, "raw_cell", ""))
    return raw if "%%trace" in raw else f"%%trace {request.model} {request.prompt}"


def _origin(module: Any) -> str:
    """The name or folder a model was loaded from, as `LanguageModel` takes it."""
    name = str(getattr(getattr(module, "config", None), "_name_or_path", "") or "")
    return "demo" if name.endswith(_DEMO) else name
