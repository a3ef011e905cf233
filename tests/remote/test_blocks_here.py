"""`remote="local"`: a block taken apart, sent as bytes, put together, and run, in this process."""

import pytest
import torch

import insitu
from insitu import CaptureError, NeverRanError, UsageError

PROMPT = "The Eiffel Tower is in the city of"
LOCAL = "local"


def test_values_come_back_as_they_are_here(llm):
    with llm.trace(PROMPT):
        h = llm.transformer.h[2].output
        logits = llm.lm_head.output
    with llm.trace(PROMPT, remote=LOCAL):
        h2 = llm.transformer.h[2].output.save()
        logits2 = llm.lm_head.output.save()
    assert torch.equal(h, h2)
    assert torch.equal(logits, logits2)


def test_only_what_is_saved_comes_back(llm):
    unsaved = "as before"
    with llm.trace(PROMPT, remote=LOCAL):
        unsaved = llm.lm_head.output
        found = {"n": 3, "text": "é", "logits": unsaved[0, -1]}.save()
    assert unsaved == "as before"
    assert found["n"] == 3
    assert found["text"] == "é"
    assert found["logits"].ndim == 1


def test_names_of_the_caller_are_taken_along(llm):
    scale, layers = torch.tensor(0.5), [0, 2]

    def shrunk(h):
        return h * scale

    with llm.trace(PROMPT):
        want = [llm.transformer.h[i].output * scale for i in layers]
    with llm.trace(PROMPT, remote=LOCAL):
        got = [shrunk(llm.transformer.h[i].output) for i in layers].save()
    assert all(map(torch.equal, want, got))


def test_a_given_list_that_saved_values_are_put_into_comes_back_the_same_list(llm):
    kept = []
    mine = kept
    with llm.trace(PROMPT, remote=LOCAL):
        for layer in llm.transformer.h:
            kept.append(layer.output.save())
    assert mine is kept
    assert len(kept) == 4


def test_edits_steps_and_invokes_run_as_at_home(llm):
    with llm.generate(PROMPT, max_new_tokens=3) as tracer:
        ids = []
        for step in tracer.iter[:]:
            if step == 1:
                llm.transformer.h[0].output[:] = 0
            ids.append(llm.lm_head.output[0, -1].argmax().item())
    with llm.generate(PROMPT, max_new_tokens=3, remote=LOCAL) as tracer:
        there = [].save()
        for step in tracer.iter[:]:
            if step == 1:
                llm.transformer.h[0].output[:] = 0
            there.append(llm.lm_head.output[0, -1].argmax().item())
    assert there == ids

    with llm.trace(remote=LOCAL) as tracer:
        with tracer.invoke(PROMPT):
            first = llm.lm_head.output[0, -1].save()
        with tracer.invoke("Once upon a time"):
            second = llm.lm_head.output[0, -1].save()
    with llm.trace(PROMPT):
        want = llm.lm_head.output[0, -1]
    assert torch.allclose(first, want, atol=1e-5)
    assert not torch.allclose(first, second, atol=1e-2)


def test_gradients_come_back(llm):
    with llm.trace(PROMPT, remote=LOCAL):
        h = llm.transformer.h[1].output
        h.requires_grad_(True)
        with llm.lm_head.output.sum().backward():
            grad = h.grad.save()
    assert grad.shape[-1] == 32
    assert grad.abs().sum() > 0


def test_a_call_without_a_with_gives_what_the_model_returns(llm):
    out = llm.trace(PROMPT, remote=LOCAL)
    want = llm.trace(PROMPT)
    assert torch.equal(out.logits, want.logits)
    assert type(out) is type(want)


def test_a_session_is_one_block(llm):
    with llm.session(remote=LOCAL):
        with llm.trace(PROMPT):
            h = llm.transformer.h[2].output[:, -1]
        with llm.trace("Once upon a time"):
            llm.transformer.h[2].output[:, -1] = h
            out = llm.transformer.h[2].output[:, -1].save()
    with llm.trace(PROMPT):
        want = llm.transformer.h[2].output[:, -1]
    assert torch.allclose(out, want)


def test_a_block_in_a_function_and_in_a_class(llm):
    class Study:
        __scale = 2.0

        def run(self, factor):
            with llm.trace(PROMPT, remote=LOCAL):
                h = (llm.transformer.h[0].output * factor).save()
            return h

    with llm.trace(PROMPT):
        want = llm.transformer.h[0].output * 3
    assert torch.equal(Study().run(3), want)


# local() ------------------------------------------------------------------------------------------


def test_a_local_part_sees_values_and_replaces_them(llm):
    seen = []

    def mine(value):
        seen.append(value.shape)
        return value * 0

    with llm.trace(PROMPT, remote=LOCAL):
        hs = llm.transformer.h[1].output
        with insitu.local():
            hs = mine(hs)
        llm.transformer.h[1].output[:] = hs
        after = llm.transformer.h[1].output.save()
    assert len(seen) == 1
    assert not after.any()
    assert not hs.any()


def test_a_local_part_reads_sites(llm, capsys):
    with llm.trace(PROMPT, remote=LOCAL) as tracer:
        with insitu.local():
            hs = llm.transformer.h[-1].output
            tracer.log(hs[0, 0, 0])
        out = llm.lm_head.output.save()
    with llm.trace(PROMPT):
        want = llm.transformer.h[-1].output
    assert torch.equal(hs, want)
    assert str(want[0, 0, 0]) in capsys.readouterr().out
    assert out.ndim == 3


def test_what_a_local_part_changes_in_place_is_changed_there(llm):
    with llm.trace(PROMPT, remote=LOCAL):
        h = llm.transformer.h[1].output
        notes = []
        with insitu.local():
            h[:] = 0
            notes.append("seen")
        count = len(notes).save()
        after = llm.transformer.h[1].output.save()
    assert count == 1
    assert not after.any()


def test_a_local_part_runs_in_every_step_and_keeps_its_own_state(llm):
    state, arrived = {"line": ""}, []

    @insitu.trace
    def decode(token, state):
        arrived.append(token)
        return {"line": state["line"] + llm.tokenizer.decode(token)}

    with llm.generate(PROMPT, max_new_tokens=4, remote=LOCAL):
        llm.all()
        tokens = llm.lm_head.output[0, -1].argmax().item()
        with insitu.local():
            state = decode(tokens, state)
    assert len(arrived) == 4
    assert state["line"] == "".join(map(llm.tokenizer.decode, arrived))


def test_what_cannot_be_sent_stays_and_its_use_there_says_so(llm):
    with llm.trace(PROMPT, remote=LOCAL):
        h = llm.transformer.h[1].output
        with insitu.local():
            figure = object()
        with insitu.local():
            kind = type(figure).__name__
        done = [kind].save()
    assert done == ["object"]
    with pytest.raises(UsageError, match="figure is used on the server") as error:
        with llm.trace(PROMPT, remote=LOCAL):
            h = llm.transformer.h[1].output
            with insitu.local():
                figure = object()
            h[:] = figure * 2
    assert len(str(error.value).splitlines()) == 3


def test_a_local_part_that_writes_a_site_is_refused(llm):
    with pytest.raises(UsageError, match="writes to") as error:
        with llm.trace(PROMPT, remote=LOCAL):
            with insitu.local():
                llm.transformer.h[1].output[:] = 0
    assert "after it" in error.value.next


def test_a_local_part_in_a_function_is_refused(llm):
    with pytest.raises(CaptureError, match="in a function of its own"):
        with llm.trace(PROMPT, remote=LOCAL):

            def look(h):
                with insitu.local():
                    print(h)

            look(llm.transformer.h[1].output)


def test_an_error_in_a_local_part_is_raised_as_it_is(llm):
    class Mine(Exception):
        pass

    with pytest.raises(Mine):
        with llm.trace(PROMPT, remote=LOCAL):
            h = llm.transformer.h[1].output
            with insitu.local():
                raise Mine(h)
    with llm.trace(PROMPT):
        assert llm.lm_head.output.ndim == 3


def test_without_remote_a_local_part_is_plain_code(llm):
    with llm.trace(PROMPT):
        h = llm.transformer.h[1].output
        with insitu.local():
            h[:] = 0
        after = llm.transformer.h[1].output
    assert not after.any()


# What goes wrong ----------------------------------------------------------------------------------


def test_an_error_is_of_its_own_class_and_at_the_users_line(llm):
    with pytest.raises(IndexError) as error:
        with llm.trace(PROMPT, remote=LOCAL):
            llm.lm_head.output[0, 9999].save()
    assert "out of bounds" in str(error.value)
    last = error.traceback[-1]
    assert "9999" in str(last.statement)
    assert any("line" in note for note in error.value.__notes__)


def test_errors_of_ours_are_ours_again(llm):
    with pytest.raises(insitu.OutOfOrderError) as error:
        with llm.trace(PROMPT, remote=LOCAL):
            llm.lm_head.output.save()
            llm.transformer.h[0].output.save()
    assert len(str(error.value).splitlines()) == 3
    with pytest.raises((NeverRanError, insitu.UnknownModuleError)):
        with llm.trace(PROMPT, remote=LOCAL):
            llm.transformer.hh.output.save()


def test_blocking_without_remote_is_refused(llm):
    with pytest.raises(UsageError, match="without remote="):
        llm.trace(PROMPT, blocking=False)


def test_what_stays_here_refuses_remote(llm):
    for method in (llm.open, llm.scan):
        with pytest.raises(UsageError, match="was given remote="):
            method(PROMPT, remote=True)
