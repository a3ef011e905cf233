"""The messages that views are tested with in node are those that Python sends.

To write them anew: `python tests/widgets/test_samples.py`, and look at the difference.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from asking import ask

from insitu import NNsight
from insitu.methods.axes import Axis
from insitu.methods.result import Result
from insitu.widgets import (
    AttentionView,
    CacheInspector,
    DenoisingView,
    JobDock,
    JobEvent,
    PatchMap,
)

SAMPLES = Path(__file__).parents[2] / "labextension" / "samples"


def floats(part):
    return np.frombuffer(part, "<f4").tolist()


def answered(view, name, **given):
    """An answer with its buffers as numbers."""
    content, buffers = ask(view, name, **given)
    return {**content["value"], "buffers": [floats(part) for part in buffers]}


def traits(view, *names):
    sent = {name: getattr(view, name) for name in names}
    return {
        name: floats(value) if isinstance(value, bytes) else value for name, value in sent.items()
    }


def attention_view():
    axes = (
        Axis("layer", [1, 2]), Axis("head", range(2)),
        Axis("query_pos", ["The", " <b>", "\n"]), Axis("key_pos", ["The", " <b>", "\n"]),
    )  # fmt: skip
    values = torch.arange(36.0).view(2, 2, 3, 3) / 36
    view = AttentionView(Result(values, axes, "attention weight", title="Attention"))
    names = ("layers", "heads", "names", "chooses", "size", "query_tokens", "key_tokens")
    return {
        "traits": traits(view, "title", "note", *names),
        "heads": answered(view, "heads", layer=1),
        "tile": answered(view, "tile", layer=1, head=0, rows=[0, 3], columns=[0, 3]),
        "query": answered(view, "query", layer=1, head=0, query=2),
    }


def cache_inspector():
    given = {
        "model.h.0.mlp.output": torch.arange(24.0).view(2, 3, 4),
        "model.h.1.mlp.output": torch.tensor([1.0, float("nan"), float("inf")]),
        "<b>\n": torch.ones(2, dtype=torch.bool),
    }
    view = CacheInspector(given)
    return {
        "traits": traits(view, "title", "count", "size_bytes", "compares", "first"),
        "numbers": ask(view, "numbers", which=[0, 1, 2])[0]["value"],
        "picture": answered(view, "picture", which=0, at=[1]),
        "hunt": ask(view, "hunt", start=0)[0]["value"],
        "place": ask(view, "place", layer=1, step=None, chosen=0)[0]["value"],
        "news": news(),
    }


def news():
    """What is told of a cache that grows, at the end of its pass."""
    twice = torch.nn.Identity()
    told = []
    with NNsight(torch.nn.Sequential(twice, torch.nn.ReLU(), twice)).trace(torch.ones(2)) as tracer:
        view = tracer.cache(["0", "1"]).view()
        view._arriving._heard = lambda is_over: is_over and view._tell()  # once, at the end
        view.send = lambda content, buffers=None: told.append(content["news"])
    return told


def patch_map():
    estimate = Result(
        torch.tensor([[0.0, 0.25, 0.5], [0.75, 1.0, float("nan")]]),
        (Axis("layer", [2, 3]), Axis("pos", ["The", " <b>", "\n"])),
        "share restored, estimated",
        title="Patches",
    )
    view = PatchMap(estimate, lambda layer, places: torch.full((len(places),), 0.125))
    before = traits(view, "ran")
    view.run([1], [0, 2])
    names = ("names", "chooses", "rows", "columns", "quantity", "first", "estimated")
    told = traits(view, "title", "note", *names)
    return {"traits": told, "before": before["ran"], **traits(view, "ran", "state")}


def denoising_view():
    picture = torch.linspace(0, 1, 3 * 4 * 4).view(3, 4, 4)
    maps = torch.arange(8.0).view(2, 2, 2) / 8
    view = DenoisingView.of([picture] * 2, maps=[maps, maps], tokens=[" <b>", "\n"], prompt="<b>\n")
    content, buffers = ask(view, "steps", first=0)
    return {
        "traits": traits(view, "title", "prompt", "tokens", "note", "state"),
        "steps": content["value"],
        "maps": [floats(part) for part in buffers[1::2]],
        "pictures": [bytes(part[1:4]).decode() for part in buffers[::2]],
    }


def job_dock():
    dock = JobDock()
    dock.feed(
        JobEvent("a", "status", phase="RUNNING", time=10.0),
        JobEvent("a", "progress", "steps", done=3, of=9, time=11.0),
        JobEvent("a", text="<b>", time=12.0),
        JobEvent("b", "status", phase="RECEIVED", time=5.0),
        JobEvent("b", "status", phase="COMPLETED", time=8.0),
    )
    dock._tell()
    states = [{**state, "now": 20.0} for state in dock.jobs]
    return {"jobs": states, "chosen": dock.chosen}


MADE = {
    made.__name__: made
    for made in (attention_view, cache_inspector, patch_map, denoising_view, job_dock)
}


def written(told):
    """As a file has it; what is no number is a word there."""
    return json.dumps(_plain(told), indent=1, ensure_ascii=False) + "\n"


def _plain(told):
    if isinstance(told, float) and not np.isfinite(told):
        return str(told)
    if isinstance(told, dict):
        return {name: _plain(part) for name, part in told.items()}
    if isinstance(told, (list, tuple)):
        return [_plain(part) for part in told]
    return told


@pytest.mark.parametrize("name", MADE)
def test_the_sample_is_what_python_sends(name):
    assert json.loads((SAMPLES / f"{name}.json").read_text()) == json.loads(written(MADE[name]()))


if __name__ == "__main__":
    for name, made in MADE.items():
        (SAMPLES / f"{name}.json").write_text(written(made()))
