"""The first line of a `%%trace` cell, read.

parse("model 'The Eiffel Tower is in' --generate 3")
# Request(model="model", prompt="'The Eiffel Tower is in'", generate="3", …)
"""

import re
from dataclasses import dataclass

from insitu.errors import UsageError
from insitu.notebook.magics.line import Option, Syntax, Taken, joined, taken

REMOTE = Option(
    "--remote", "[URL]", "server",
    "it sends the cell to a server, and without a URL to the one in CONFIG.API.HOST",
    "--remote http://127.0.0.1:8765", may=re.compile(r"local|['\"]?https?://.*"), enough=2,
)  # fmt: skip
VIEWS = ("generation", "lens", "cache", "attention", "tree")
USAGE = (
    "%%trace MODEL PROMPT [--generate N] [--invoke PROMPT]… [--scan] [--cache SITES] "
    "[--grad EXPR] [--edit NAME] [--view VIEW] [--remote [URL]] [--background] [--time] "
    "[--quiet] [--no-lint]"
)
SYNTAX = Syntax(
    "%%trace",
    USAGE,
    (
        Option(
            "--generate", "N", "number",
            "it generates that many tokens, with the cell inside every step", "--generate 3",
        ),
        Option(
            "--invoke", "PROMPT", "prompt",
            "it is one prompt more in the same pass, and may be there several times",
            '--invoke "The Colosseum is in the city of"',
        ),
        Option("--scan"),
        Option(
            "--cache", "SITES", "sites",
            "it keeps what modules return, in the variable `cache`",
            "--cache transformer.h.* (several with commas between)",
        ),
        Option(
            "--grad", "EXPR", "expression",
            "it computes the gradients of a number at every site the cell has met, in `grads`",
            "--grad logits[0,-1].max()",
        ),
        Option(
            "--edit", "NAME", "name",
            "it keeps the cell as a lasting edit of a model of that name", "--edit edited",
        ),
        Option("--view", "VIEW", "view", "the cell ends in that widget", "--view lens", VIEWS),
        REMOTE,
        Option("--background"),
        Option("--time"),
        Option("--quiet"),
        Option("--no-lint"),
    ),
)  # fmt: skip
OPTIONS = SYNTAX.names

_SETTING = re.compile(r"(max_new_tokens|max_length|do_sample|temperature|top_[kp])=(.*)")
_APART = (
    ("--scan", ("--generate", "--grad", "--view", "--time", "--edit", "--cache"),
     "fake tensors have no values"),
    ("--grad", ("--generate",), "transformers generates without gradients"),
)  # fmt: skip
_HERE_ALONE = {
    "--scan": (
        "a scan computes nothing, so there is nothing to send",
        "scan without --remote first, and then send the cell without --scan",
    ),
    "--cache": (
        "it keeps tensors of a pass in this process, and the pass is the server's",
        "write cache = insitu.save(tracer.cache(modules=[…])) in the cell",
    ),
    "--grad": (
        "gradients are asked for in the process of the pass",
        "write with logits.sum().backward(): in the cell, and g = h.grad.save() in it",
    ),
    "--edit": (
        "it keeps the cell as an edit in this process",
        "make the edit in a cell of its own; it travels along with %%trace edited PROMPT --remote",
    ),
    "--view": (
        "a view is filled by a pass in this process",
        "save what it is to show, and open it below: insitu.show({'logits': logits})",
    ),
    "--time": (
        "the bare forward would be timed here, on another machine",
        "leave --time out; the card has the time of each phase",
    ),
}
"""What goes with no `--remote`: why, and what to do instead."""


_OF_A_RUN = ("--generate", "--time", "--cache", "--grad", "--view", "--quiet")


@dataclass(frozen=True)
class Request:
    """What a `%%trace` line asks for.

    `model`, `prompt`, `generate`, `invokes` and `grad` are Python expressions.
    """

    model: str
    prompt: str = ""
    generate: str = ""
    time: bool = False
    quiet: bool = False
    invokes: tuple[str, ...] = ()
    scan: bool = False
    cache: str = ""
    grad: str = ""
    edit: str = ""
    view: str = ""
    lint: bool = True
    remote: bool = False
    server: str = ""
    """The address that `--remote` was given: plain, or an expression."""
    background: bool = False


def parse(line: str) -> Request:
    """Take a `%%trace` line apart.

    Raises:
        UsageError: no model, an unknown option, one without its value, or two that exclude
            each other.
    """
    found = taken(SYNTAX, line)
    _check(found)
    (start, end), prompt = found.places[0], found.places[1:]
    return Request(
        model=line[start:end],
        prompt=joined(line, prompt),
        generate=found.value("--generate"),
        time=found.has("--time"),
        quiet=found.has("--quiet"),
        invokes=tuple(found.values.get("--invoke", ())),
        scan=found.has("--scan"),
        cache=found.value("--cache"),
        grad=found.value("--grad"),
        edit=found.value("--edit"),
        view=found.value("--view"),
        lint=not found.has("--no-lint"),
        remote=found.has("--remote"),
        server=found.value("--remote"),
        background=found.has("--background"),
    )


def _check(found: Taken) -> None:
    if not found.places:
        raise UsageError(
            "%%trace was given no model.",
            "it runs a model on a prompt, with the cell inside the pass.",
            f'name both: %%trace model "The Eiffel Tower is in the city of". The line is {USAGE}',
        )
    for word in found.words[1:]:
        if setting := _SETTING.fullmatch(word):
            count = setting[2] if setting[1].startswith("max") else "3"
            raise UsageError(
                f"{setting[1]} is a setting of generate(), and %%trace takes no settings.",
                "it runs one forward, or generates the likeliest tokens with --generate.",
                f"write --generate {count}, or with model.generate(…, {word}) as tracer:",
            )
    for name, others, why in _APART:
        if found.has(name) and (both := [it for it in others if found.has(it)]):
            raise UsageError(
                f"--{name[2:]} and --{both[0][2:]} exclude each other.",
                f"{why}.",
                f"leave one of them out. The line is {USAGE}",
            )
    _check_remote(found)
    _check_edit(found)


def _check_edit(found: Taken) -> None:
    name = found.value("--edit")
    runs = len(found.places) > 1 or found.has("--invoke")
    if name and not runs and (idle := [it for it in _OF_A_RUN if found.has(it)]):
        raise UsageError(
            f"{idle[0]} was given, and nothing runs.",
            "--edit without a prompt keeps the cell for later passes.",
            f"add a prompt, or leave {idle[0]} out.",
        )
    if name and not name.isidentifier():
        raise UsageError(
            f"--edit takes the name of a variable, not {name}.",
            "the model with the cell as a lasting edit is kept under it.",
            "write --edit edited.",
        )


def _check_remote(found: Taken) -> None:
    if not found.has("--remote"):
        if found.has("--background"):
            raise UsageError(
                "--background was given without --remote.",
                "a cell that runs here is over when it is done; only a job on a server goes on.",
                "add --remote, or leave --background out.",
            )
        return
    for name, (why, instead) in _HERE_ALONE.items():
        if found.has(name):
            raise UsageError(
                f"--remote and --{name[2:]} exclude each other.", f"{why}.", f"{instead}."
            )
    if found.has("--background") and found.value("--remote") == "local":
        raise UsageError(
            "--background and --remote local exclude each other.",
            "with local there is no job: the cell runs in this process, and the kernel waits.",
            "leave one of them out.",
        )
