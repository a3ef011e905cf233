"""Generating fifty tokens with an edit in every step.

    with model.generate(ids, max_new_tokens=50) as tracer:
        for step in tracer.iter[:]:
            layer.output.mul_(1.01)

A raw hook registered around `generate` does the same. TransformerLens generates by a loop of its
own, so a raw hook in that loop is its base. pyvene is told the edit when it wraps the model.
"""

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import libraries
from benchmarks.comparison import TIMES, Row, Task
from benchmarks.libraries import HOOKS, INSITU, LENS, PYVENE, both
from benchmarks.overhead import first
from benchmarks.subjects import Subject, gpt2
from benchmarks.timing import Way

TITLE = "Decoding"
DECODE_MAX = 1.02
TOKENS, LAYER, FACTOR = 50, 5, 1.01


def rows(quick: bool) -> Iterator[Row]:
    """One edit in each step."""
    subject = gpt2(caching=True)
    raw = hooked(subject, subject.module, subject.layers[LAYER])
    yield Row(
        f"{TOKENS} tokens, an edit in each step, of a raw hook's", TIMES,
        {**both(lambda who: Task(stepped(who, subject), raw, raw)),
         LENS: lambda: lensed(subject),
         PYVENE: lambda: Task(intervened(subject), raw, raw)},
        subject.name, bound=DECODE_MAX,
    )  # fmt: skip
    bare = Way(generating(subject.module, subject), subject.module)
    yield Row(
        f"{TOKENS} tokens, an edit in each step, of the bare decode", TIMES,
        {HOOKS: lambda: Task(raw, bare), INSITU: lambda: Task(stepped(INSITU, subject), bare, raw)},
        subject.name,
    )  # fmt: skip


def settings(subject: Subject) -> dict[str, Any]:
    """What `generate` of transformers is told."""
    return {**(subject.kwargs or {}), "max_new_tokens": TOKENS, "do_sample": False}


def generating(model: Any, subject: Subject) -> Callable[[], None]:
    """A decode without anything."""
    given = settings(subject)

    def run() -> None:
        model.generate(**given)

    return run


def hooked(subject: Subject, module: Any, layer: Any) -> Way:
    """By a raw hook."""
    generate = generating(module, subject)

    def edit(_module: Any, _args: Any, output: Any) -> None:
        first(output).mul_(FACTOR)

    def run() -> None:
        handle = layer.register_forward_hook(edit)
        try:
            generate()
        finally:
            handle.remove()

    return Way(run, module)


def stepped(who: str, subject: Subject) -> Way:
    """By a loop over steps."""
    model = libraries.language(who, subject)
    layer = subject.wrapped_layers(model)[LAYER]
    ids = (subject.kwargs or {})["input_ids"]

    def run() -> None:
        with model.generate(ids, max_new_tokens=TOKENS, do_sample=False) as tracer:
            for _step in tracer.iter[:TOKENS]:
                first(layer.output).mul_(FACTOR)

    return Way(run, model._module)


def lensed(subject: Subject) -> Task:
    """By TransformerLens, over a raw hook in its own generate."""
    bridge = libraries.lens(subject)
    ids = (subject.kwargs or {})["input_ids"]
    name = f"blocks.{LAYER}.hook_out"

    def generate() -> None:
        bridge.generate(
            ids, max_new_tokens=TOKENS, do_sample=False, stop_at_eos=False, verbose=False
        )

    def edit(value: Any, hook: Any) -> None:
        value.mul_(FACTOR)

    def by_lens() -> None:
        with bridge.hooks(fwd_hooks=[(name, edit)]):
            generate()

    def by_hook() -> None:
        handle = bridge.hook_dict[name].register_forward_hook(
            lambda _module, _args, output: output.mul_(FACTOR)
        )
        try:
            generate()
        finally:
            handle.remove()

    base = Way(by_hook, bridge.original_model)
    return Task(Way(by_lens, bridge.original_model), base, base)


def intervened(subject: Subject) -> Way:
    """By pyvene; without a unit location it intervenes in every step, the prompt's too."""
    model = libraries.pyvene(
        subject,
        [{"layer": LAYER, "component": "block_output",
          "intervention": lambda value, _: value * FACTOR}],
    )  # fmt: skip
    given = settings(subject)
    ids = given.pop("input_ids")

    def run() -> None:
        model.generate({"input_ids": ids}, intervene_on_prompt=True, **given)

    return Way(run, model.model)
