"""Run as `other_python.py URL 3.12`, on any Python: a client of a server on 3.12.

A block of each kind, each against the same block in place.
"""

import sys
from dataclasses import dataclass

import pytest
import torch

import insitu
from insitu import CONFIG, LanguageModel

PROMPT = "The Eiffel Tower is in the city of"
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass
class Score:
    name: str
    value: float


def scaled(h, factor=2.0):
    """The user's own function: its text travels."""
    parts = [part * factor for part in (h,)]
    return parts[0]


def whole(demo, far):
    """A block with prints, a function of one's own, a comprehension, a result."""
    print("-- whole")
    with far.trace(PROMPT, remote=True) as tracer:
        h = far.transformer.h[1].output
        print("shape", tuple(h.shape))
        tracer.log("loss", 0.5, tags="train")
        sums = [scaled(layer.output).sum().item() for layer in far.transformer.h[2:4]].save()
        logits = far.lm_head.output.save()
        match sums:
            case [first, _]:
                kept = {"first": first, "h": h[0, -1]}.save()
    with demo.trace(PROMPT):
        h_here = demo.transformer.h[1].output
        sums_here = [scaled(layer.output).sum().item() for layer in demo.transformer.h[2:4]]
        logits_here = demo.lm_head.output
    torch.testing.assert_close(logits, logits_here)
    torch.testing.assert_close(sums, sums_here)
    torch.testing.assert_close(kept["h"], h_here[0, -1])
    assert kept["first"] == sums[0]
    lines = [(it.text, it.tags) for it in tracer.job.events if it.kind == "log"]
    assert lines == [(f"shape {tuple(h_here.shape)}", ()), ("loss 0.5", ("train",))], lines


def parts(demo, far):
    """A `local()` part in a function, which assigns its caller's names while it runs."""
    print("-- parts")
    seen, factor = [], 0.5

    def run():
        nonlocal factor
        with far.trace(PROMPT, remote=True):
            h = far.transformer.h[1].output
            with insitu.local():
                seen.append(sys.version_info[:2])
                factor = factor + float(h.shape[-1] > 0)
                h = h * factor
            far.transformer.h[1].output[:] = h
            after = far.lm_head.output[0, -1].save()
        return h, after

    h, after = run()
    assert seen == [sys.version_info[:2]]
    assert factor == 1.5
    with demo.trace(PROMPT):
        demo.transformer.h[1].output[:] = demo.transformer.h[1].output * 1.5
        want = demo.lm_head.output[0, -1]
    torch.testing.assert_close(after, want)
    assert h.shape[-1] == 128


def session(demo, far):
    """Two passes as one job, and a value carried between them."""
    print("-- session")
    with far.session(remote=True) as ran:
        with far.trace(PROMPT):
            h = far.transformer.h[2].output[:, -1]
        with far.trace("Buckingham Palace is in the city of"):
            far.transformer.h[2].output[:, -1] = h
            out = far.lm_head.output[0, -1].save()
        with far.generate(PROMPT, max_new_tokens=2):
            ids = far.generator.output.save()
    with demo.trace(PROMPT):
        h = demo.transformer.h[2].output[:, -1]
    with demo.trace("Buckingham Palace is in the city of"):
        demo.transformer.h[2].output[:, -1] = h
        want = demo.lm_head.output[0, -1]
    torch.testing.assert_close(out, want)
    assert ids.shape[0] == 1
    assert ran.job.phase == "COMPLETED"


def steps_and_classes(demo, far):
    """Steps, an object of one's own class, and gradients."""
    print("-- steps and classes")
    with far.generate(PROMPT, max_new_tokens=3, remote=True) as tracer:
        scores = [].save()
        for step in tracer.iter[:]:
            best = far.lm_head.output[0, -1].max()
            scores.append(Score(f"step {step}", best.item()))
    assert [type(it) for it in scores] == [Score] * 3
    assert [it.name for it in scores] == ["step 0", "step 1", "step 2"]
    with far.trace(PROMPT, remote=True):
        h = far.transformer.h[1].output
        h.requires_grad_(True)
        with far.lm_head.output.sum().backward():
            grad = h.grad.save()
    assert grad.abs().sum() > 0


def errors(demo, far):
    """What goes wrong there is raised at one's own line."""
    print("-- errors")
    with pytest.raises(IndexError) as caught:
        with far.trace(PROMPT, remote=True):
            h = far.transformer.h[1].output
            h[0, 10_000]
    last = caught.traceback[-1]
    assert str(last.path) == __file__
    assert last.lineno + 1 == errors.__code__.co_firstlineno + 6
    with pytest.raises(insitu.OutOfOrderError, match=r"transformer\.h\.0"):
        with far.trace(PROMPT, remote=True):
            far.lm_head.output
            far.transformer.h[0].output


def main(url, there):
    CONFIG.API.HOST = url
    assert insitu.status().info["python"].startswith(there)
    demo, far = LanguageModel("demo"), LanguageModel("demo", dispatch=False)
    for act in (whole, parts, session, steps_and_classes, errors):
        act(demo, far)
    print(f"client {HERE} of a server on {there}: all is well")


if __name__ == "__main__":
    main(*sys.argv[1:])
