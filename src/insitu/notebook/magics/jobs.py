"""`%jobs [JOB]… [--remote [URL]]`: the runs of this notebook's `%%trace` cells, or a dock of jobs.

%jobs
%jobs training evaluation
%jobs --remote
"""

import re
from typing import Any

from insitu.errors import UsageError
from insitu.notebook.magics.line import Option, Syntax, taken
from insitu.notebook.magics.names import value
from insitu.notebook.magics.widgets import made
from insitu.notebook.remote_server import server_of

SYNTAX = Syntax(
    "%jobs",
    "%jobs [JOB]… [--remote [URL]]",
    (
        Option(
            "--remote", "[URL]", "server",
            "it lists your jobs on a server, and without a URL on the one in CONFIG.API.HOST",
            "--remote http://127.0.0.1:8765", may=re.compile(r"https?://.*"),
        ),
    ),
)  # fmt: skip


def jobs(ip: Any, line: str) -> Any:
    """List what has run: each %%trace cell with its prompt, edits and time; or jobs, live.

        %jobs                           the ledger: compare two runs, run one again, export them
        %jobs training evaluation       a dock of these jobs: phases, logs, cancel
        %jobs --remote                  a dock of your last 20 jobs on the server

    All are widgets: `ledger = %jobs`.
    """
    found = taken(SYNTAX, line)
    named = [value(SYNTAX, it, "job", ip.user_ns) for it in found.words]
    if not found.has("--remote"):
        return made("job_dock:JobDock", *named) if named else made("run_ledger:RunLedger")
    from insitu.remote.client.info import taken_up  # brings the HTTP client along

    server = server_of(SYNTAX, found.value("--remote"), ip.user_ns)
    listed = taken_up(server)
    if not (named or listed):
        raise UsageError(
            "you have no jobs on the server.",
            "it lists those of your key, until their results are forgotten.",
            'send one: %%trace model "The Eiffel Tower is in the city of" --remote.',
        )
    return made("job_dock:JobDock", *named, *listed)
