"""`%patch`: which activations carry the difference between two prompts.

%patch clean corrupt --answer " Mary" --wrong " John" --of heads
"""

from typing import Any

from insitu.errors import UsageError
from insitu.methods.metrics import logit_difference
from insitu.notebook.magics.line import Option, Syntax, taken
from insitu.notebook.magics.names import language_model, model_and_rest, text_of, value
from insitu.notebook.magics.widgets import made

PLACES = ("resid_pre", "resid_mid", "resid_post", "attention", "mlp", "heads", "q", "k", "v")
SYNTAX = Syntax(
    "%patch",
    "%patch [MODEL] CLEAN CORRUPT --answer TOKEN --wrong TOKEN [--of PLACE]",
    (
        Option("--answer", "TOKEN", "token", "it is what the clean prompt is followed by",
               '--answer " Mary"'),
        Option("--wrong", "TOKEN", "token", "it is what the corrupted prompt is followed by",
               '--wrong " John"'),
        Option("--of", "PLACE", "place", "it is what is patched", "--of heads", PLACES),
    ),
)  # fmt: skip


def patch(ip: Any, line: str) -> Any:
    """Estimate what every patch from a clean prompt into a corrupted one would do.

        %patch clean corrupt --answer " Mary" --wrong " John"
        %patch model clean corrupt --answer " Mary" --wrong " John" --of heads

    The map is a widget: brush cells, and exactly those patches are run. `--of` takes
    resid_pre (the default), resid_mid, resid_post, attention, mlp, heads, q, k or v.
    """
    found = taken(SYNTAX, line)
    name, model, rest = model_and_rest(SYNTAX, found, ip.user_ns, 2)
    if len(rest) != 2:
        raise UsageError(
            f"%patch was given {len(rest) or 'no'} prompt{'s' * (not rest)}.",
            "it puts activations of a clean one into a corrupted one of as many tokens.",
            f"write both, in quotes or by name. The line is {SYNTAX.usage}",
        )
    language = language_model(SYNTAX, name, model)
    tokens = []
    for option in ("--answer", "--wrong"):
        if not found.has(option):
            raise UsageError(
                f"%patch was given no {option}.",
                "it measures by how much the model prefers the answer to the wrong token.",
                'write --answer " Mary" --wrong " John", with the space the tokens begin with.',
            )
        tokens.append(text_of(SYNTAX, found.value(option), f"{option} token", ip.user_ns))
    clean, corrupt = (value(SYNTAX, text, "prompt", ip.user_ns) for text in rest)
    metric = logit_difference(language, *tokens)
    of = found.value("--of") or "resid_pre"
    return made("patch_map:patch_map", language, clean, corrupt, metric, of=of)
