"""Operations inside a forward: the first `.source` of a class, and reading one after that.

    attn = model.transformer.h[0].attn
    with model.trace(ids):
        projected = attn.source.self_c_proj_0.output

The first one reads, names and compiles the forward. A class is met for the first time once, so each
cold run has a class of its own: transformers' GPT-2 file imported once more, under another name.
"""

import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers.models.gpt2 import modeling_gpt2

from benchmarks import libraries
from benchmarks.comparison import ALONE, OVER, Row, Task
from benchmarks.libraries import both
from benchmarks.subjects import Subject, gpt2
from benchmarks.timing import Way

TITLE = "Operations inside a forward"
FIRST_MAX_US, READ_MAX_US = 2_000, 2
OPERATION = "self_c_proj_0"
"""Its value is that of the module `c_proj`."""
MLP = ("c_fc", "act", "c_proj", "dropout")
"""The modules that the forward of an MLP calls, each in one operation."""


def rows(quick: bool) -> Iterator[Row]:
    """Cold, then warm."""
    subject, tiny = gpt2(), gpt2("GPT-2 shape, 2 layers", layers=2)
    with tempfile.TemporaryDirectory() as folder:
        copies = Copies(Path(folder), tiny)
        yield Row(
            "first `.source` of a class, and naming an operation", ALONE,
            both(first_named, copies), tiny.name, bound=FIRST_MAX_US,
        )  # fmt: skip
        yield Row(
            "first read of an operation of a class, over reading a module", OVER,
            both(first_read, copies), tiny.name,
        )  # fmt: skip
    yield Row(
        "the first operation of a forward in a pass, over reading its module", OVER,
        both(warm, subject, True), subject.name, per=12, bound=READ_MAX_US,
    )  # fmt: skip
    yield Row(
        "a further operation of that forward, over reading its module", OVER,
        both(warm, subject, False), subject.name, per=36, bound=READ_MAX_US,
    )  # fmt: skip


class Copies:
    """Models whose classes no one has seen before."""

    def __init__(self, folder: Path, subject: Subject) -> None:
        self._folder = folder
        self._subject = subject
        self._text = Path(str(modeling_gpt2.__file__)).read_text()
        self._count = 0

    def another(self) -> Subject:
        """The same model, its classes from a file of their own."""
        self._count += 1
        # Lines differ, as code objects that are alike in everything would be taken for one another.
        text = "\n" * self._count + self._text
        path = self._folder / f"modeling_gpt2_{self._count}.py"
        path.write_text(text)
        made = _imported(f"{modeling_gpt2.__package__}.{path.stem}", path)
        module = made.GPT2LMHeadModel(self._subject.module.config).eval()
        module.load_state_dict(self._subject.module.state_dict())
        return Subject(
            self._subject.name, module, list(module.transformer.h),
            kwargs=self._subject.kwargs, prefix=self._subject.prefix,
        )  # fmt: skip


def _imported(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def first_named(who: str, copies: Copies) -> Task:
    """Naming one operation."""

    def fresh() -> Any:
        subject = copies.another()
        return subject.wrapped_layers(libraries.plain(who, subject))[0].attn

    def run(attn: Any) -> None:
        getattr(attn.source, OPERATION)

    return Task(Way(run, prepare=fresh))


def first_read(who: str, copies: Copies) -> Task:
    """Reading one operation, beside reading the module that gives the same value."""
    keep = libraries.keep(who)

    def fresh() -> Any:
        subject = copies.another()
        model = libraries.plain(who, subject)
        kwargs = subject.kwargs or {}
        attn = subject.wrapped_layers(model)[0].attn
        for _ in range(2):  # the first pass of a model is observed; that is not what is asked here
            with model.trace(**kwargs):
                keep(attn.c_proj.output)
        return model, kwargs, attn

    def operation(given: Any) -> Any:
        model, kwargs, attn = given
        with model.trace(**kwargs):
            value = keep(attn.source.self_c_proj_0.output)
        return value

    def module(given: Any) -> Any:
        model, kwargs, attn = given
        with model.trace(**kwargs):
            value = keep(attn.c_proj.output)
        return value

    base = Way(module, prepare=fresh)
    return Task(Way(operation, prepare=fresh), base, base)


def warm(who: str, subject: Subject, first_alone: bool) -> Task:
    """Reading operations, beside the modules they call.

    The first of each of 12 forwards; or the three after it, when it is an operation both times.
    """
    model, keep = libraries.plain(who, subject), libraries.keep(who)
    kwargs = subject.kwargs or {}
    operations: list[Any] = []
    modules: list[Any] = []
    for layer in subject.wrapped_layers(model):
        source = layer.mlp.source
        inside = [getattr(source, f"self_{name}_0") for name in MLP]
        called = [getattr(layer.mlp, name) for name in MLP]
        operations += inside[:1] if first_alone else inside
        modules += called[:1] if first_alone else inside[:1] + called[1:]

    def reading(sites: list[Any]) -> Way:
        def run() -> Any:
            with model.trace(**kwargs):
                seen = keep({})
                for number, site in enumerate(sites):
                    seen[number] = site.output
            return list(seen.values())

        return Way(run, model._module)

    base = reading(modules)
    return Task(reading(operations), base, base)
