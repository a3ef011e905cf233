"""A magic's line, taken apart: words, and options with their values.

taken(TRACE, "model 'Hello' --generate 3")
# Taken(places=[(0, 5), (6, 13)], values={"--generate": ["3"]}, …)
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from insitu.engine.paths import nearest
from insitu.errors import UsageError

_QUOTED = re.compile(r"'''.*?'''|\"\"\".*?\"\"\"|'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"", re.DOTALL)


@dataclass(frozen=True)
class Option:
    """One option of a magic."""

    name: str
    value: str = ""
    """What its value is called in the usage; empty for one without."""
    noun: str = "value"
    does: str = ""
    """What it does, for who has left its value out."""
    example: str = ""
    choices: tuple[str, ...] = ()
    may: re.Pattern[str] | None = None
    """Its value may be left out; the next word is it if it looks like this."""
    enough: int = 0
    """Any next word is that value once so many words stand before the option."""

    def takes(self, word: str, before: int) -> bool:
        """Whether the next word is its value, with so many words before it."""
        if self.may is None:
            return True
        is_free = before >= self.enough and not word.startswith("--")
        return bool(word) and (is_free or self.may.fullmatch(word) is not None)


@dataclass(frozen=True)
class Syntax:
    """What a magic's line may hold."""

    magic: str
    usage: str
    options: tuple[Option, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Its options' names."""
        return tuple(option.name for option in self.options)

    def option(self, name: str) -> Option:
        """The option of a name.

        Raises:
            UsageError: there is none.
        """
        found = next((it for it in self.options if it.name == name), None)
        if found is not None:
            return found
        close = nearest(name, self.names)
        knows = f"it knows {', '.join(self.names)}." if self.options else "it has no options."
        raise UsageError(
            f"%{self.magic[1:]} has no option {name}.",
            knows,
            f"did you mean {close[0]}?" if close else f"leave it out. The line is {self.usage}",
        )


@dataclass(frozen=True)
class Taken:
    """A line's words where they stand, and what its options were given."""

    line: str
    places: list[tuple[int, int]]
    values: dict[str, list[str]] = field(default_factory=dict)

    @property
    def words(self) -> list[str]:
        """The words that are no options."""
        return [self.line[start:end] for start, end in self.places]

    def value(self, name: str) -> str:
        """What an option was given last; empty when it was not."""
        return self.values.get(name, [""])[-1]

    def has(self, name: str) -> bool:
        """Whether an option was named."""
        return name in self.values


def taken(syntax: Syntax, line: str) -> Taken:
    """Take a line apart.

    Raises:
        UsageError: an option is unknown, or is given no value, or not one of its own.
    """
    places: list[tuple[int, int]] = []
    values: dict[str, list[str]] = {}
    words = split(line)[::-1]
    while words:
        start, end = words.pop()
        word = line[start:end]
        if not word.startswith("--"):
            places.append((start, end))
            continue
        name, has_value, value = word.partition("=")
        option = syntax.option(name)
        following = line[slice(*words[-1])] if words else ""
        if option.value and not has_value and option.takes(following, len(places)):
            value = following
            words = words[:-1]
        _check(syntax, option, value, has_value=bool(has_value))
        values.setdefault(name, []).append(value)
    return Taken(line, places, values)


def _check(syntax: Syntax, option: Option, value: str, *, has_value: bool) -> None:
    if not option.value:
        if has_value:
            raise UsageError(
                f"--{option.name[2:]} takes no value, and was given {value}.",
                "it is there or it is not.",
                f"write {option.name} alone. The line is {syntax.usage}",
            )
        return
    if option.may is not None and not value and not has_value:
        return
    if not value or value in syntax.names:
        raise UsageError(
            f"--{option.name[2:]} was given no {option.noun}.",
            f"{option.does}.",
            f"write {option.example}. The line is {syntax.usage}",
        )
    if option.choices and value not in option.choices:
        close = nearest(value, option.choices)
        raise UsageError(
            f"--{option.name[2:]} knows no {value}.",
            f"it knows {', '.join(option.choices)}.",
            f"did you mean {option.name} {close[0]}?" if close else f"write {option.example}.",
        )


def split(line: str) -> list[tuple[int, int]]:
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


def joined(line: str, places: Sequence[tuple[int, int]]) -> str:
    """Words as they were written, without the options between them."""
    parts, last = [], None
    for start, end in places:
        if last is not None:
            parts.append(" " if "--" in line[last:start] else line[last:start])
        parts.append(line[start:end])
        last = end
    return "".join(parts)
