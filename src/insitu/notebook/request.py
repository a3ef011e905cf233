"""The first line of a `%%trace` cell, read.

parse("model 'The Eiffel Tower is in' --generate 3")
# Request(model="model", prompt="'The Eiffel Tower is in'", generate="3", …)
"""

import re
from dataclasses import dataclass

from insitu.engine.paths import nearest
from insitu.errors import UsageError

USAGE = "%%trace MODEL PROMPT [--generate N] [--time] [--quiet]"
OPTIONS = ("--generate", "--time", "--quiet")

_QUOTED = re.compile(r"'''.*?'''|\"\"\".*?\"\"\"|'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"", re.DOTALL)


@dataclass(frozen=True)
class Request:
    """What a `%%trace` line asks for. `model`, `prompt` and `generate` are Python expressions."""

    model: str
    prompt: str = ""
    generate: str = ""
    time: bool = False
    quiet: bool = False


def parse(line: str) -> Request:
    """Take a `%%trace` line apart.

    Raises:
        UsageError: no model, an unknown option, or one without its number.
    """
    words = _words(line)
    places: list[tuple[int, int]] = []
    options: dict[str, str] = {}
    rest = iter(words)
    for start, end in rest:
        word = line[start:end]
        if not word.startswith("--"):
            places.append((start, end))
            continue
        name, has_value, value = word.partition("=")
        _check_option(name)
        if name == "--generate" and not has_value:
            value = line[slice(*next(rest, (0, 0)))]
        options[name] = value
    if options.get("--generate", "1") in ("", *OPTIONS):
        raise UsageError(
            "--generate was given no number.",
            "it generates that many tokens, with the cell inside every step.",
            f"write --generate 3. The line is {USAGE}",
        )
    if not places:
        raise UsageError(
            "%%trace was given no model.",
            "it runs a model on a prompt, with the cell inside the pass.",
            f'name both: %%trace model "The Eiffel Tower is in the city of". The line is {USAGE}',
        )
    (start, end), prompt = places[0], places[1:]
    return Request(
        model=line[start:end],
        prompt=_joined(line, prompt),
        generate=options.get("--generate", ""),
        time="--time" in options,
        quiet="--quiet" in options,
    )


def _check_option(name: str) -> None:
    if name in OPTIONS:
        return
    close = nearest(name, OPTIONS)
    raise UsageError(
        f"%%trace has no option {name}.",
        f"it knows {', '.join(OPTIONS)}.",
        f"did you mean {close[0]}?" if close else f"leave it out. The line is {USAGE}",
    )


def _joined(line: str, places: list[tuple[int, int]]) -> str:
    """The prompt's words as they were written, without the options between them."""
    parts, last = [], None
    for start, end in places:
        if last is not None:
            parts.append(" " if "--" in line[last:start] else line[last:start])
        parts.append(line[start:end])
        last = end
    return "".join(parts)


def _words(line: str) -> list[tuple[int, int]]:
    """Where the words are: what white space separates outside quotes and brackets."""
    found: list[tuple[int, int]] = []
    at, depth, start = 0, 0, None
    while at < len(line):
        quoted = _QUOTED.match(line, at)
        if quoted:
            start, at = at if start is None else start, quoted.end()
            continue
        character = line[at]
        depth += (character in "([{") - (character in ")]}")
        if character.isspace() and depth <= 0:
            if start is not None:
                found.append((start, at))
            start = None
        elif start is None:
            start = at
        at += 1
    if start is not None:
        found.append((start, at))
    return found
