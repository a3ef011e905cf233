"""docs/errors.md: every program on the page raises what it says, and nothing is missing there."""

import ast
import linecache
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
from IPython.utils.capture import capture_output

import insitu
from insitu import errors

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "errors.md"
LINES = PAGE.read_text().splitlines()

LATER: set[str] = set()
"""Classes not on the page yet. It can only shrink."""

LATER_FILES: set[str] = set()
"""Files whose messages are not on the page yet. It can only shrink."""

CLASSES = {
    name
    for name, it in vars(errors).items()
    if isinstance(it, type) and issubclass(it, errors.InsituError)
}

SEARCHABLE = 6
"""Letters that a message must have beside what varies in it."""


@dataclass(frozen=True)
class Entry:
    """One message of the page: its class, its first line, and a program that raises it."""

    kind: str
    pattern: str
    program: str
    language: str
    line: int

    def matches(self, text):
        literal = (re.escape(part) for part in self.pattern.split("…"))
        return re.fullmatch(".*".join(literal), text) is not None


def blocks():
    """The page's fenced programs: what is behind the fence's ticks, the text, the first line."""
    opened = None
    for number, line in enumerate(LINES, 1):
        if not line.startswith("```"):
            continue
        if opened is None:
            opened = number, line.removeprefix("```")
        else:
            yield opened[1], "\n".join(LINES[opened[0] : number - 1]), opened[0] + 1
            opened = None


def above(line, marks):
    """The heading above a line."""
    return next(one.removeprefix(marks) for one in LINES[line::-1] if one.startswith(marks))


def headings():
    """Every message of the page with its class, and whether it says that it has no program."""
    kind, found = "", []
    for line in LINES:
        if line.startswith("## "):
            kind = line.removeprefix("## ")
        elif line.startswith("### "):
            found.append([Entry(kind, line.removeprefix("### ").strip("`"), "", "", 0), ""])
        elif found:
            found[-1][1] += f"{line} "
    return [(entry, "(No program:" in text) for entry, text in found]


def read():
    """The page's entries, and the program that all of them continue."""
    (kind, setup, _), *programs = blocks()
    assert kind == "python setup"
    entries = [
        Entry(above(line, "## "), above(line, "### ").strip("`"), program, language, line)
        for language, program, line in programs
    ]
    return setup, entries


SETUP, ENTRIES = read()


def number_of(entry):
    return f"{entry.kind}-{entry.line}"


def run(text, line, names):
    """Run a program of the page, at its own lines, with its text to be found by its file's name."""
    source = "\n" * (line - 1) + text + "\n"
    name = f"<docs/errors.md:{line}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    try:
        exec(compile(source, name, "exec"), names)
    finally:
        del linecache.cache[name]


@pytest.fixture(scope="module")
def made():
    names = {"__name__": "__main__"}
    run(SETUP, 1, names)
    return names


@pytest.fixture
def shell(bare_shell, made):
    bare_shell.run_line_magic("load_ext", "insitu")
    bare_shell.user_ns.update({name: made[name] for name in ("net", "x", "model", "llm", "prompt")})
    yield bare_shell
    bare_shell.run_line_magic("unload_ext", "insitu")


def raised_by(entry, request):
    if entry.language == "ipython":
        with capture_output():
            result = request.getfixturevalue("shell").run_cell(entry.program)
        return result.error_before_exec or result.error_in_exec
    names = dict(request.getfixturevalue("made"))
    try:
        run(entry.program, entry.line, names)
    except insitu.InsituError as error:
        names.clear()
        return error.with_traceback(None)
    return None


@pytest.mark.parametrize("entry", ENTRIES, ids=number_of)
def test_a_program_raises_what_the_page_says(entry, request):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", insitu.InsituWarning)  # of what a failure leaves unused
        error = raised_by(entry, request)
    assert type(error).__name__ == entry.kind
    assert entry.matches(error.what), error.what
    nearer = [e for e in ENTRIES if e.matches(error.what) and len(e.pattern) > len(entry.pattern)]
    assert not nearer, f"that is {nearer[0].pattern}"


def test_every_class_of_error_is_on_the_page():
    shown = [line.removeprefix("## ") for line in LINES if line.startswith("## ")]
    assert sorted(shown) == sorted(CLASSES - LATER)
    assert CLASSES >= LATER


def first_line(node):
    """A message as it stands in the code, with `…` for what varies."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(first_line(part) for part in node.values)
    return "…"


def messages():
    """The first line of every error made in the package: `(file, class, line)`."""
    source = ROOT / "src" / "insitu"
    for path in sorted(source.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(getattr(node, "func", None), "id", "")
            if name not in CLASSES or len(node.args) != 3:
                continue
            text = first_line(node.args[0])
            if len(text.replace("…", "").strip(" .()")) >= SEARCHABLE:  # else it is put together
                yield str(path.relative_to(source)), name, text


@pytest.mark.parametrize(("file", "kind", "text"), sorted(messages()))
def test_every_message_is_on_the_page(file, kind, text):
    if file in LATER_FILES:
        pytest.skip("its messages come later")
    same_class = (entry for entry, _ in headings() if entry.kind == kind)
    assert any(entry.matches(text) for entry in same_class), f"docs/errors.md lacks {kind}: {text}"


def test_patterns_say_enough_to_be_searched_for():
    for entry in ENTRIES:
        assert len(entry.pattern.replace("…", "").strip(" .()")) >= SEARCHABLE, entry
        assert entry.language in ("python", "ipython")
    shown = [(entry.kind, entry.pattern) for entry in ENTRIES]
    assert len(set(shown)) == len(shown)
    bare = [(entry.kind, entry.pattern) for entry, has_none in headings() if has_none]
    assert sorted(shown + bare) == sorted((e.kind, e.pattern) for e, _ in headings())
