"""What reading and writing twelve layers costs, beside raw hooks and nnsight, in one process.

    python benchmarks/overhead.py [--rounds 40] [--json FILE]

One thread, random weights. Before anything is timed, every way must give the numbers of the bare
forward, or of the raw hooks' edit. Single runs take turns with the bare forward, in random order;
the figures are µs over it: medians, and first quartiles, which a busy machine moves less.
"""

import argparse
import copy
import gc
import importlib.metadata
import importlib.util
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import insitu

Way = Callable[[], Any]
LABELS = {"read": "12 reads", "edit": "12 edits in place", "replace": "12 replacements"}


@dataclass
class Subject:
    """A model, its input, and how often one timing repeats it."""

    name: str
    module: torch.nn.Module
    inputs: dict[str, Any]
    layers: list[torch.nn.Module]
    paths: str
    repeat: int

    def forward(self) -> Any:
        return self.module(**self.inputs)


def mlp() -> Subject:
    torch.manual_seed(0)
    net = torch.nn.Sequential(*(torch.nn.Linear(32, 32) for _ in range(12)))
    return Subject("12-layer MLP", net, {"input": torch.rand(1, 32)}, list(net), "", 50)


def gpt2(width: int, heads: int, vocabulary: int, tokens: int, name: str, repeat: int) -> Subject:
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=12,
        n_embd=width,
        n_head=heads,
        vocab_size=vocabulary,
        n_positions=128,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config).eval()
    ids = torch.randint(0, vocabulary, (1, tokens))
    return Subject(
        name, model, {"input_ids": ids}, list(model.transformer.h), "transformer.h", repeat
    )


def subjects(quick: bool) -> list[Subject]:
    small = gpt2(48, 4, 200, 8, "GPT-2 shape, narrow", 10)
    return (
        [mlp(), small] if quick else [mlp(), small, gpt2(768, 12, 50257, 64, "GPT-2, full size", 1)]
    )


def hooked(subject: Subject, action: str) -> Way:
    """Raw hooks, registered and removed around each forward, each knowing its layer."""

    def make(number: int, seen: dict[int, Any]) -> Callable[..., Any]:
        def read(_module: Any, _args: Any, output: Any) -> None:
            seen[number] = output

        def edit(_module: Any, _args: Any, output: Any) -> None:
            first(output).mul_(1.5)

        def replace(_module: Any, _args: Any, output: Any) -> Any:
            return scaled(output)

        return {"read": read, "edit": edit, "replace": replace}[action]

    def run() -> Any:
        seen: dict[int, Any] = {}
        handles = [
            layer.register_forward_hook(make(number, seen))
            for number, layer in enumerate(subject.layers)
        ]
        try:
            output = subject.forward()
        finally:
            for handle in handles:
                handle.remove()
        return output, list(seen.values())

    return run


def first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def scaled(output: Any) -> Any:
    if isinstance(output, tuple):
        return (output[0] * 1.5, *output[1:])
    return output * 1.5


def traced(model: Any, subject: Subject, action: str, keep_output: bool = False) -> Way:
    """The same through insitu or nnsight: both are written alike."""
    inputs = () if subject.paths else tuple(subject.inputs.values())
    named = subject.inputs if subject.paths else {}
    keep = importlib.import_module(type(model).__module__.partition(".")[0]).save
    blocks = model.transformer.h if subject.paths else model
    layers = [blocks[i] for i in range(12)]

    def empty() -> Any:
        with model.trace(*inputs, **named):
            pass

    def read() -> Any:
        with model.trace(*inputs, **named):
            seen = keep({})
            for number, layer in enumerate(layers):
                seen[number] = layer.output
            output = keep(model.output if keep_output else 0)
        return output, list(seen.values())

    def edit() -> Any:
        with model.trace(*inputs, **named):
            for layer in layers:
                first(layer.output).mul_(1.5)
            output = keep(model.output if keep_output else 0)
        return output, []

    def replace() -> Any:
        with model.trace(*inputs, **named):
            for layer in layers:
                layer.output = scaled(layer.output)
            output = keep(model.output if keep_output else 0)
        return output, []

    return {"empty": empty, "read": read, "edit": edit, "replace": replace}[action]


def wrappers(subject: Subject) -> dict[str, Any]:
    """The libraries, each on a model of its own: nnsight leaves a `forward` on every module."""
    found: dict[str, Any] = {"insitu": insitu.NNsight(subject.module)}
    if importlib.util.find_spec("nnsight"):
        import nnsight

        found["nnsight"] = nnsight.NNsight(copy.deepcopy(subject.module))
    return found


def check_equal(subject: Subject, models: dict[str, Any]) -> None:
    """The gate: every way gives the raw forward's numbers, or the raw hooks' edit."""
    bare = subject.forward()
    for action in ("read", "edit", "replace"):
        wanted, seen = hooked(subject, action)()
        for name, model in models.items():
            output, got = traced(model, subject, action, keep_output=True)()
            assert torch.equal(_tensor(output), _tensor(wanted)), f"{name}: {action} differs"
            for a, b in zip(got, seen, strict=False):
                assert torch.equal(_tensor(a), _tensor(b)), f"{name}: {action} saw other values"
        if action == "read":
            assert torch.equal(_tensor(wanted), _tensor(bare))


def _tensor(value: Any) -> torch.Tensor:
    if hasattr(value, "logits"):
        return value.logits
    return value[0] if isinstance(value, tuple) else value


def once(way: Way) -> float:
    start = time.perf_counter_ns()
    way()
    return (time.perf_counter_ns() - start) / 1000


def measure(subject: Subject, rounds: int) -> dict[str, Any]:
    """Median µs of single runs over the median of the bare forwards they took turns with."""
    models = wrappers(subject)
    check_equal(subject, models)
    ways: dict[str, Way] = {
        f"raw hooks, {label}": hooked(subject, action) for action, label in LABELS.items()
    }
    for name, model in models.items():
        ways[f"{name}, empty"] = traced(model, subject, "empty")
        for action, label in LABELS.items():
            ways[f"{name}, {label}"] = traced(model, subject, action)
    bare: dict[str, list[float]] = {name: [] for name in ways}
    took: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, way in random.sample(list(ways.items()), len(ways)):
                for _ in range(subject.repeat):
                    bare[name].append(once(subject.forward))
                    took[name].append(once(way))
            gc.collect()
    finally:
        gc.enable()
    middle = {name: statistics.median(bare[name]) for name in ways}
    return {
        "subject": subject.name,
        "bare_us": round(statistics.median(middle.values()), 1),
        "over_us": {n: round(statistics.median(took[n]) - middle[n], 1) for n in ways},
        "quarter_us": {n: round(_quarter(took[n]) - _quarter(bare[n]), 1) for n in ways},
    }


def _quarter(values: list[float]) -> float:
    """The first quartile: what a run takes when the machine is left alone."""
    return statistics.quantiles(values, n=4)[0]


def table(results: list[dict[str, Any]]) -> str:
    lines = []
    for result in results:
        bare = result["bare_us"]
        lines += [
            f"\n{result['subject']}: bare forward {bare:,.0f} µs",
            f"  {'':30}{'µs over bare':>14}{'1st quartile':>14}{'% of bare':>11}",
        ]
        for name, value in result["over_us"].items():
            quarter = result["quarter_us"][name]
            lines.append(f"  {name:30}{value:14,.1f}{quarter:14,.1f}{100 * value / bare:11.1f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--quick", action="store_true", help="leave the full-size model out")
    parser.add_argument("--json", help="write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        results = [measure(subject, options.rounds) for subject in subjects(options.quick)]
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    for package in ("transformers", "greenlet", "nnsight"):
        if importlib.util.find_spec(package):
            versions[package] = importlib.metadata.version(package)
    print(" · ".join(f"{k} {v}" for k, v in versions.items()), table(results))
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"versions": versions, "results": results}, file, indent=1)


if __name__ == "__main__":
    main()
