"""Cut a reference document into the cells of code it shows.

    for cell in cells("004"):
        print(cell.number, cell.code)

A notebook's text marks where its cells begin, and prose follows them; Markdown has fences; a README
that was copied as text has neither, so what reads as Python is a cell; and a document that lost its
line ends gets them back. The documents stay where they are: nothing of them is kept here.
"""

import ast
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "reference"
LONGEST = 60
"""No cell has more lines than this."""


@dataclass(frozen=True)
class Cell:
    """One piece of code of a document."""

    document: str
    number: int
    line: int
    code: str

    @property
    def first(self) -> str:
        """Its first line that does something."""
        lines = [line for line in self.code.splitlines() if line.strip()]
        return next((it for it in lines if not it.lstrip().startswith("#")), lines[0])


def cells(document: str) -> list[Cell]:
    """The cells of a document, given by the number its file begins with."""
    (path,) = FOLDER.glob(f"{document}_*.txt")
    text = path.read_text(encoding="utf-8")
    found = CUTS[document](text)
    return [Cell(document, number, line, code) for number, (line, code) in enumerate(found, 1)]


Found = Iterator[tuple[int, str]]
"""The line a cell begins on, and its code."""


def notebook(text: str) -> Found:
    """Cells begin below `In [None]:` and end where prose begins; their prose has fences too."""
    lines, at = text.splitlines(), 0
    while at < len(lines):
        if lines[at].startswith("In [") and lines[at].endswith("]:"):
            code, used = longest(lines[at + 1 :])
            yield at + 2, code
            at += used
        elif opening := FENCE.fullmatch(lines[at]):
            end = next(i for i in range(at + 1, len(lines)) if lines[i] == opening[1] + "```")
            yield at + 2, _dedented(lines[at + 1 : end], opening[1])
            at = end
        at += 1


def numbered(text: str) -> Found:
    """Cells begin below `[4]:`; what they printed and prose follow them."""
    lines, at = text.splitlines(), 0
    while at < len(lines):
        if re.fullmatch(r"\[\d+\]:", lines[at]):
            code, used = longest(lines[at + 1 :])
            yield at + 2, code
            at += used
        at += 1


FENCE = re.compile(r"([ >]*)```python")


def fenced(text: str) -> Found:
    """Cells stand between fences, perhaps indented with the list they belong to."""
    return notebook(text)


def prose(text: str) -> Found:
    """A cell is what reads as Python between lines that do not."""
    lines, at = text.splitlines(), 0
    while at < len(lines):
        code, used = longest(lines[at:]) if STARTS.match(lines[at]) else ("", 1)
        if code:
            yield at + 1, code
        at += used


STARTS = re.compile(r"(from|import|with|for|#) |\w+ = |\w+\(")


def longest(lines: list[str]) -> tuple[str, int]:
    """As many of the lines as are Python that does something, and how many those are."""
    for count in range(min(len(lines), LONGEST), 0, -1):
        if lines[count - 1].strip() and not lines[count - 1].startswith("#"):
            code = "\n".join(lines[:count])
            if _does_something(code):
                return code, count
    return "", 1


def _does_something(code: str) -> bool:
    """Whether it parses, and no heading of one word is among its statements."""
    try:
        body = ast.parse(re.sub(r"(?m)^(\s*)!.*", r"\1pass", code)).body
    except SyntaxError:
        return False
    shown = [it.value for it in body if isinstance(it, ast.Expr)]
    return bool(body) and all(isinstance(it, ast.Call) for it in shown)


def flattened(text: str) -> Found:
    """Fenced cells of a document whose line ends became spaces, comments and all."""
    for fence in re.finditer(r"```python (.*?) ```", text):
        yield 1, layout(statements(fence[1]))


STATEMENT = re.compile(
    r"from [\w.]+ import |import \w|with [\w.]+\(|for [\w, ]+ in |print\(|\.\.\.(?=$| )"
    r"|[a-zA-Z_][\w.]*(\[[^\]]*\]|\.\w+)* [*+]?= |[a-zA-Z_]\w*(\.\w+)+(\(|$| )"
)
"""What a line of these documents begins with."""
WITHIN_BRACKETS = re.compile(r"\w+=\S|\)")
"""What ends a comment that stands between brackets."""


def statements(text: str) -> list[str]:
    """The lines of a cell that lost its line ends, without its comments."""
    found: list[str] = []
    line, depth, quote, comment = "", 0, "", False
    for at, char in enumerate(text):
        begins = at == 0 or text[at - 1] == " "
        if comment:
            ends = WITHIN_BRACKETS if depth else STATEMENT
            comment = not (begins and ends.match(text, at))
        whole = begins and not (comment or depth or quote) and _is_over(line)
        if whole and STATEMENT.match(text, at):
            found.append(line)
            line = ""
        if not (quote or comment) and char == "#":
            comment = True
        if comment:
            continue
        line += char
        if char == quote:
            quote = ""
        elif not quote and char in "\"'":
            quote = char
        elif not quote:
            depth += (char in "([{") - (char in ")]}")
    return [it.strip() for it in (*found, line) if it.strip()]


def _is_over(line: str) -> bool:
    """Whether a statement may end here: nothing more is expected."""
    return not re.search(r"([-=*+/,.(]|\b(in|as|import|with|for|from)|\bfrom [\w.]+) *$", line)


def layout(lines: list[str]) -> str:
    """Lines below the headers they belong to: invokes in their trace, traces in their session."""
    laid_out, open_at = [], {"session": -1, "trace": -1, "invoke": -1}
    for line in lines:
        header = re.match(r"with \w+\.(\w+)", line)
        kind = {"generate": "trace"}.get(header[1], header[1]) if header else ""
        if kind:
            above = list(open_at)[: list(open_at).index(kind)]
            depth = 1 + max((open_at[it] for it in above), default=-1)
            open_at.update({it: -1 for it in open_at if it not in above}, **{kind: depth})
        elif laid_out and laid_out[-1].startswith("for "):
            depth = 1
        else:
            depth = 0 if line.startswith(("print(", "for ")) else 1 + max(open_at.values())
        laid_out.append("    " * depth + line)
    return "\n".join(laid_out)


def _dedented(lines: list[str], margin: str) -> str:
    return textwrap.dedent("\n".join(line.removeprefix(margin) for line in lines))


CUTS: dict[str, Callable[[str], Found]] = {
    "000": numbered,
    "001": prose,
    "002": flattened,
    "003": fenced,
    "004": notebook,
}
"""How each document is cut: README, flattened reference, release notes, notebook."""
