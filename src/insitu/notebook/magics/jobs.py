"""`%jobs [JOB]…`: the runs of this notebook's `%%trace` cells, or a dock of jobs.

%jobs
%jobs training evaluation
"""

from typing import Any

from insitu.notebook.magics.line import Syntax, taken
from insitu.notebook.magics.names import value
from insitu.notebook.magics.widgets import made

SYNTAX = Syntax("%jobs", "%jobs [JOB]…")


def jobs(ip: Any, line: str) -> Any:
    """List what has run: each %%trace cell with its prompt, edits and time; or jobs, live.

        %jobs                           the ledger: compare two runs, run one again, export them
        %jobs training evaluation       a dock of these jobs: phases, logs, cancel

    Both are widgets: `ledger = %jobs`.
    """
    words = taken(SYNTAX, line).words
    if not words:
        return made("run_ledger:RunLedger")
    return made("job_dock:JobDock", *(value(SYNTAX, it, "job", ip.user_ns) for it in words))
