"""Blocks on a server of the demo model, in a jail: what the wrapper here is, the model there is."""

import threading

import pytest
import torch

import insitu
from insitu import LanguageModel, UsageError

PROMPT = "The Eiffel Tower is in the city of"


@pytest.fixture(scope="module")
def demo():
    """The oracle: the same model here."""
    return LanguageModel("demo")


@pytest.fixture
def far(remote):
    """A wrapper without weights."""
    return LanguageModel("demo", dispatch=False)


def test_weights_stay_where_they_are(far, demo, remote):
    with far.trace(PROMPT, remote=remote):
        logits = far.lm_head.output.save()
    with demo.trace(PROMPT):
        want = demo.lm_head.output
    torch.testing.assert_close(logits, want)
    assert next(far._module.parameters()).is_meta


def test_edits_of_the_wrapper_travel(far, demo, remote):
    direction = torch.linspace(-3, 3, 128)
    with far.edit() as edited:
        far.transformer.h[2].output[:, -1] += direction
    with demo.edit() as here:
        demo.transformer.h[2].output[:, -1] += direction
    with edited.trace(PROMPT, remote=remote):
        logits = edited.lm_head.output.save()
    torch.testing.assert_close(logits, here(PROMPT).logits)
    with far.trace(PROMPT, remote=remote):
        plain = far.lm_head.output.save()
    assert not torch.allclose(plain, logits, atol=1e-2)


def test_further_names_travel(far, demo, remote):
    far.rename({"transformer.h": "blocks", "mlp": "feed"})
    with far.trace(PROMPT, remote=remote):
        out = far.blocks[1].feed.output.save()
        same = far.layers[1].mlp.output.save()
    assert torch.equal(out, same)


def test_a_cache_comes_back(far, demo, remote):
    with far.trace(PROMPT, remote=remote) as tracer:
        cache = tracer.cache(["transformer.h.*"]).save()
    with demo.trace(PROMPT) as tracer:
        want = tracer.cache(["transformer.h.*"])
    assert len(cache) == len(want) == 6
    torch.testing.assert_close(cache["transformer.h.3"].output, want["transformer.h.3"].output)


def test_a_job_with_local_parts_need_not_block(far, remote):
    seen, here = [], threading.get_ident()

    def note(token):
        seen.append((token, threading.get_ident()))

    with far.generate(PROMPT, max_new_tokens=3, remote=remote, blocking=False) as tracer:
        tokens = [].save()
        for _ in tracer.iter[:]:
            token = far.lm_head.output[0, -1].argmax().item()
            tokens.append(token)
            with insitu.local():
                note(token)
    result = tracer.job.result(timeout_s=60)
    assert result["tokens"] == [token for token, _ in seen]
    assert len(seen) == 3
    assert all(thread != here for _, thread in seen)


def test_tokens_are_told_as_they_come(far, remote):
    with far.generate(PROMPT, max_new_tokens=4, remote=remote) as tracer:
        ids = far.generator.output.save()
    told = [it for it in tracer.job.events if it.kind == "progress" and it.unit == "tokens"]
    assert [it.done for it in told][-1] == 4
    assert ids.shape[-1] >= 4


def test_an_error_in_a_local_part_ends_the_job(far, remote):
    class Mine(Exception):
        pass

    with pytest.raises(Mine):
        with far.trace(PROMPT, remote=remote):
            h = far.transformer.h[1].output
            with insitu.local():
                raise Mine(h)
    assert insitu.jobs(remote=remote)


def test_a_model_that_the_server_has_not_is_refused(llm, remote):
    llm.__dict__["_opened_as"] = "nobody/has-this"
    with pytest.raises(insitu.ServerRefusedError, match="nobody/has-this") as error:
        with llm.trace(PROMPT, remote=remote):
            llm.lm_head.output.save()
    assert "demo" in str(error.value)


def test_a_wrapper_of_a_bare_module_has_no_name(net, x, remote):
    model = insitu.NNsight(net)
    with pytest.raises(UsageError, match="no name that a server"):
        with model.trace(x, remote=remote):
            model.layer1.output.save()
