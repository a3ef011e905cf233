"""An error as a view shows it: what, why and what next; what is no error of ours has a place.

trouble_of(error)           # {"what": "…", "why": "…", "next": "…"}
"""

import traceback
from pathlib import Path

from insitu.errors import InsituError

Trouble = dict[str, str]


def trouble_of(error: BaseException) -> Trouble:
    """What a view is told of an error."""
    if isinstance(error, InsituError):
        what, why, further = (*str(error).splitlines(), "", "", "")[:3]
        return {"what": what, "why": why.strip(), "next": further.strip()}
    if isinstance(error, KeyboardInterrupt):
        return {"what": "it was interrupted.", "why": "", "next": "What came before is kept."}
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f"{Path(last[0].filename).name}, line {last[0].lineno}" if last else ""
    return {"what": f"{type(error).__name__}: {error}", "why": where, "next": ""}
