"""`%lens` and `%attention`: what each layer would say next, and what each head reads.

%lens "The Eiffel Tower is in the city of" --target " Paris"
%attention "The Eiffel Tower is in the city of"
"""

from typing import Any

from insitu.errors import UsageError
from insitu.methods.attention_patterns import attention_patterns
from insitu.methods.logit_lens import logit_lens
from insitu.methods.tuned_lens import TunedLens
from insitu.notebook.magics.line import Option, Syntax, taken
from insitu.notebook.magics.modules import bare
from insitu.notebook.magics.names import language_model, model_and_rest, text_of, value
from insitu.notebook.magics.widgets import made

LENS = Syntax(
    "%lens",
    "%lens [MODEL] PROMPT [--target TOKEN] [--tuned FILE]",
    (
        Option("--target", "TOKEN", "token", "it shows the chance of one token at each place",
               '--target " Paris"'),
        Option("--tuned", "FILE", "file", "it reads by a tuned lens that lens.save() has written",
               "--tuned lens.pt"),
    ),
)  # fmt: skip
ATTENTION = Syntax(
    "%attention",
    "%attention [MODEL] PROMPT [--layers LAYERS]",
    (
        Option("--layers", "LAYERS", "layers", "it shows those alone", "--layers 2,3"),
    ),
)  # fmt: skip


def lens(ip: Any, line: str) -> Any:
    """Read the residual stream after every layer as a prediction of the next token.

        %lens "The Eiffel Tower is in the city of"
        %lens model prompt --target " Paris"        the chance of one token
        %lens model prompt --tuned lens.pt          by a tuned lens

    The grid is a widget: `grid = %lens "Hello"`; `grid.result` has the numbers.
    """
    found = taken(LENS, line)
    model, prompt = _of_prompt(LENS, found, ip.user_ns)
    target = found.value("--target")
    wanted = text_of(LENS, target, "target", ip.user_ns) if target else None
    if not found.has("--tuned"):
        result = logit_lens(model, prompt, target=wanted)
    else:
        result = _tuned(bare(found.value("--tuned")))(model, prompt, target=wanted)
    return made("lens_grid:LensGrid", result)


def attention(ip: Any, line: str) -> Any:
    """Show what every head reads: small maps of a layer, one of them large.

    %attention "The Eiffel Tower is in the city of"
    %attention model prompt --layers 2,3
    """
    found = taken(ATTENTION, line)
    model, prompt = _of_prompt(ATTENTION, found, ip.user_ns)
    given = found.value("--layers")
    layers = value(ATTENTION, f"[{given.strip('[]()')}]", "layers", ip.user_ns) if given else None
    patterns = attention_patterns(model, prompt, layers=layers)
    return made("attention_view:AttentionView", patterns)


def _of_prompt(syntax: Syntax, found: Any, names: Any) -> tuple[Any, Any]:
    """The language model and the prompt that a line names."""
    name, model, rest = model_and_rest(syntax, found, names, 1)
    if not rest:
        raise UsageError(
            f"%{syntax.magic[1:]} was given no prompt.",
            "it runs the model once on it.",
            f'write {syntax.magic} {name} "The Eiffel Tower is in the city of".',
        )
    return language_model(syntax, name, model), value(syntax, rest[0], "prompt", names)


def _tuned(file: str) -> TunedLens:
    try:
        return TunedLens.load(file)
    except FileNotFoundError:
        raise UsageError(
            f"there is no file {file}.",
            "--tuned reads a lens that lens.save() has written.",
            "train one: insitu.methods.train_tuned_lens(model, texts).save(\"lens.pt\").",
        ) from None  # fmt: skip
