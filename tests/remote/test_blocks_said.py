"""What a block says while it runs: tagged lines, tokens, and how far it is."""

import pytest
import torch

import insitu
from insitu import CONFIG, LanguageModel
from insitu.remote.blocks import telling
from insitu.remote.client import tracer as client_tracer
from insitu.widgets.remote_log import RemoteLog

PROMPT = "The Eiffel Tower is in the city of"


@pytest.fixture
def said(monkeypatch):
    """What blocks with `remote="local"` say, beside what they print."""
    heard = []

    class Link(client_tracer._Loopback):
        def log(self, text, tags=()):
            heard.append(("log", text, tags))

        def progress(self, text, done, of, unit):
            heard.append(("progress", text, done, of, unit))

        def token(self, step, ids):
            heard.append(("token", step, ids))

    monkeypatch.setattr(client_tracer, "_Loopback", Link)
    return heard


def of_kind(said, kind):
    return [it[1:] for it in said if it[0] == kind]


# Tagged lines -------------------------------------------------------------------------------------


def test_a_tagged_line_is_told_with_its_tags_and_a_plain_one_is_printed(llm, said, capsys):
    with llm.trace(PROMPT, remote="local") as tracer:
        h = llm.transformer.h[1].output
        tracer.log("loss", 0.25, tags="train")
        tracer.log("wide", tuple(h.shape), tags=("shapes", "warning"))
        tracer.log("two\nlines", tags=["debug"])
        tracer.log("plain", 3)
    lines = of_kind(said, "log")
    assert lines[0] == ("loss 0.25", ("train",))
    assert lines[1][0].startswith("wide (1, ")
    assert lines[1][1] == ("shapes", "warning")
    assert lines[2:] == [("two", ("debug",)), ("lines", ("debug",))]
    assert capsys.readouterr().out == "plain 3\n"


def test_a_line_of_an_invoke_a_step_a_session_and_a_gradient_keeps_its_tags(llm, said):
    with llm.session(remote="local"):
        with llm.trace() as tracer:
            with tracer.invoke(PROMPT):
                llm.transformer.h[1].output
                tracer.log("invoke", tags="a")
            with tracer.invoke("Once"):
                llm.transformer.h[1].output
                tracer.log("other", tags="b")
        with llm.generate(PROMPT, max_new_tokens=2) as tracer:
            for step in tracer.iter[:]:
                llm.transformer.h[1].output
                tracer.log("step", step, tags="c")
        with llm.trace(PROMPT) as tracer:
            h = llm.transformer.h[1].output
            h.requires_grad_(True)
            with llm.lm_head.output.sum().backward():
                h.grad
                tracer.log("gradient", tags="d")
    assert of_kind(said, "log") == [
        ("invoke", ("a",)), ("other", ("b",)), ("step 0", ("c",)), ("step 1", ("c",)),
        ("gradient", ("d",)),
    ]  # fmt: skip


def test_in_place_a_tagged_line_is_printed(llm, capsys):
    with llm.trace(PROMPT) as tracer:
        tracer.log("loss", 0.25, tags="train")
    with llm.trace(PROMPT, remote="local") as tracer:
        with insitu.local():
            tracer.log("here", tags="train")
    assert capsys.readouterr().out == "loss 0.25\nhere\n"


def test_after_a_block_lines_are_printed_again(llm, said, capsys):
    with pytest.raises(ZeroDivisionError):
        with llm.trace(PROMPT, remote="local") as tracer:
            tracer.log("there", tags="train")
            print(1 / 0)
    with llm.trace(PROMPT) as tracer:
        tracer.log("here", tags="train")
    assert of_kind(said, "log") == [("there", ("train",))]
    assert capsys.readouterr().out == "here\n"


def test_a_log_filters_the_lines_of_a_job_by_their_tags(remote):
    far = LanguageModel("demo", dispatch=False)
    with far.trace(PROMPT, remote=remote) as tracer:
        h = far.transformer.h[1].output
        for n in range(3):
            tracer.log("loss", n, tags="train")
        tracer.log("wide", h.ndim, tags=("shapes", "warning"))
        print("plain")
    lines = [(it.text, it.tags) for it in tracer.job.events if it.kind == "log"]
    assert lines == [
        ("loss 0", ("train",)), ("loss 1", ("train",)), ("loss 2", ("train",)),
        ("wide 3", ("shapes", "warning")), ("plain", ()),
    ]  # fmt: skip
    log = RemoteLog(tracer.job)
    shown = log.answer_tail({})  # what the view filters by
    by_line = {shown["texts"][int(n)]: tags for n, tags in shown["tags"].items()}
    assert by_line["loss 2"] == ["train"]
    assert by_line["wide 3"] == ["shapes", "warning"]
    assert "plain" not in by_line
    assert "[train]" in log.text()
    log.close()


# Tokens -------------------------------------------------------------------------------------------


def test_every_generation_of_a_session_tells_its_tokens(llm, said):
    with llm.generate(PROMPT, max_new_tokens=3):
        want = llm.generator.output
    want = want[0, -3:].tolist()
    with llm.session(remote="local"):
        with llm.trace(PROMPT):
            llm.transformer.h[1].output
        for _ in range(2):
            with llm.generate(PROMPT, max_new_tokens=3):
                pass
    steps = [(step, (id,)) for step, id in enumerate(want)]
    assert of_kind(said, "token") == steps * 2


def test_a_generation_after_one_that_was_stopped_begins_at_its_own_first_step(llm, said):
    with llm.session(remote="local"):
        with llm.generate(PROMPT, max_new_tokens=5) as tracer:
            for step in tracer.iter[:]:
                llm.lm_head.output
                if step == 2:
                    tracer.stop()
        with llm.generate(PROMPT, max_new_tokens=2) as tracer:
            for _ in tracer.iter[:]:
                llm.lm_head.output
    assert [step for step, _ in of_kind(said, "token")] == [0, 1, 0, 1]


def test_the_rows_of_a_batch_are_told_together(llm, said):
    with llm.generate([PROMPT, "Once upon a time"], max_new_tokens=2, remote="local"):
        ids = llm.generator.output.save()
    assert of_kind(said, "token") == [(n, tuple(ids[:, n - 2].tolist())) for n in range(2)]


def test_nothing_stays_on_the_streamer(llm, said):
    with pytest.raises(ZeroDivisionError):
        with llm.session(remote="local"):
            with llm.generate(PROMPT, max_new_tokens=3):
                print(1 / 0)
    generator = llm._extras["generator"]
    assert not generator.streamer._forward_hooks
    assert not generator._forward_hooks


def test_tokens_of_a_session_come_through_a_server(remote):
    far = LanguageModel("demo", dispatch=False)
    with CONFIG.APP.override(REMOTE_LOGGING=False), far.session(remote=remote) as session:
        with far.generate(PROMPT, max_new_tokens=4):
            ids = far.generator.output.save()
    told = [it for it in session.job.events if it.kind == "progress" and it.unit == "tokens"]
    assert [it.done for it in told] == [1, 2, 3, 4]
    assert ids.shape[-1] >= 4


# How far it is ------------------------------------------------------------------------------------


def test_a_large_result_tells_how_much_of_it_is_written(llm, said, monkeypatch):
    monkeypatch.setattr(telling, "TOLD_BYTES", 2**20)
    monkeypatch.setattr(telling, "TOLD_EVERY_S", 0.0)
    with llm.trace(PROMPT, remote="local"):
        noise = torch.rand(2_000_000).save()
        zeros = torch.zeros(2_000_000).save()
        few = [1, 2].save()
    assert (noise.shape, zeros.any().item(), few) == ((2_000_000,), False, [1, 2])
    told = of_kind(said, "progress")
    assert {(text, of, unit) for text, _, of, unit in told} == {
        ("Writing the result", 16_000_000, "bytes")
    }
    done = [done for _, done, *_ in told]
    assert done == sorted(done)
    assert len(done) >= 4
    assert done[-1] == 16_000_000


def test_a_small_result_tells_nothing(llm, said):
    with llm.trace(PROMPT, remote="local"):
        llm.lm_head.output.save()
    assert of_kind(said, "progress") == []


def test_progress_of_a_large_result_comes_through_a_server(remote):
    far = LanguageModel("demo", dispatch=False)
    with far.trace(PROMPT, remote=remote) as tracer:
        wide = torch.zeros(10_000_000).save()
    assert wide.shape == (10_000_000,)
    told = [it for it in tracer.job.events if it.kind == "progress"]
    assert "Writing the result" in {it.text for it in told}
    assert next(it for it in reversed(told) if it.text == "Writing the result").done == 40_000_000
