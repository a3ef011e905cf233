"""Views of the user's own go along with a block: what they read and write there is as here."""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Attention, GPT2Block

import insitu
from insitu import (
    FunctionWhitelistError,
    LanguageModel,
    NotSendableError,
    UsageError,
    View,
    WireError,
)
from insitu.remote.blocks import block, run
from insitu.remote.client.model_key import views_of
from insitu.remote.protocol import Limits

PROMPT = "The Eiffel Tower is in the city of"


def own_views(scale):
    """Classes made in a function, with names of it and of this module in their methods."""

    def halved(value):
        return value / scale

    class Counted(View):
        count = 4

        def per_head(self):
            return self.embed_dim // self.count

    class Heads(Counted):
        @property
        def heads(self) -> torch.Tensor:
            return self.c_proj.input.unflatten(-1, (self.count, self.per_head()))

        @property
        def flipped(self):
            return halved(self.heads.flip(2))

        @flipped.setter
        def flipped(self, value):
            self.c_proj.input = (value * scale).flip(2).flatten(-2)

    class Widths(View):
        root = math.sqrt(2)

        @property
        def width(self):
            return self.c_fc.output.shape[-1] * self.root

    return {GPT2Attention: Heads, GPT2MLP: [Widths]}


@pytest.fixture
def demo():
    """The oracle: the same model and views here."""
    return LanguageModel("demo", views=own_views(2.0))


@pytest.fixture
def far():
    """A wrapper without weights."""
    return LanguageModel("demo", dispatch=False, views=own_views(2.0))


def read_and_written(model, remote):
    with model.trace(PROMPT, remote=remote):
        heads = model.transformer.h[0].attn.heads.save()
        model.transformer.h[1].attn.heads[:, :, 3] = 0
        width = model.transformer.h[1].mlp.width.save()
        flipped = model.transformer.h[2].attn.flipped
        model.transformer.h[2].attn.flipped = flipped.roll(1, 2)
        logits = model.lm_head.output.save()
        names = [model.transformer.h[0].attn.count, model.transformer.h[0].attn.per_head()].save()
    return heads, width, logits, names


def test_views_are_read_and_written_there_as_here(far, demo, remote):
    want = read_and_written(demo, False)
    with demo.trace(PROMPT):
        plain = demo.lm_head.output
    assert not torch.allclose(want[2], plain, atol=1e-3)
    for found in (read_and_written(far, remote), read_and_written(demo, "local")):
        torch.testing.assert_close(found, want)


def test_a_view_goes_with_edits_renames_and_generations(far, demo, remote):
    found = []
    for model, where in ((demo, False), (far, remote)):
        model.rename({"transformer.h": "blocks", "attn": "looks"})
        with model.edit() as edited:
            model.blocks[1].looks.heads[:, :, 0] = 0
        with edited.generate(PROMPT, max_new_tokens=3, remote=where) as tracer:
            norms = [].save()
            for _ in tracer.iter[:]:
                norms.append(edited.blocks[2].looks.heads[:, -1].norm(dim=-1))
            ids = edited.generator.output.save()
        found.append((norms, ids))
    torch.testing.assert_close(found[1], found[0])


def test_a_view_beside_the_standard_names_and_of_a_base_class(far, demo, remote):
    class Doubled(View):
        @property
        def doubled(self):
            return self.output * 2

    found = []
    for model, where in ((demo, False), (far, remote)):
        model.add_views({torch.nn.Module: Doubled})
        with model.trace(PROMPT, remote=where):
            z = model.layers[1].attention.z.save()
            block = model.layers[1].mlp.doubled.save()
            twice = model.transformer.ln_f.doubled.save()
        found.append((z, twice, block))
    torch.testing.assert_close(found[1], found[0])


def test_a_block_without_views_is_run_without_them(far, remote):
    with far.trace(PROMPT, remote=remote):
        far.transformer.h[0].attn.heads.save()
    other = LanguageModel("demo", dispatch=False)
    with pytest.raises(insitu.UnknownModuleError, match="heads"):
        with other.trace(PROMPT, remote=remote):
            getattr(other.transformer.h[0].attn, "heads").save()  # noqa: B009


def test_our_own_views_stay_at_home(demo):
    with demo.trace(PROMPT):
        demo.layers[0].attention.z.save()
    assert [name for name, _ in views_of(demo)] == [
        "transformers.models.gpt2.modeling_gpt2.GPT2Attention",
        "transformers.models.gpt2.modeling_gpt2.GPT2MLP",
    ]


# What cannot go ---------------------------------------------------------------------------------


def test_a_view_without_text_is_refused_before_anything_is_sent(far):
    names = {"halves": property(eval("lambda self: self.output / 2"))}
    far.add_views({GPT2Block: type("Halves", (View,), names)})
    with pytest.raises(NotSendableError) as error:
        with far.trace(PROMPT, remote="http://127.0.0.1:1"):
            far.transformer.h[0].halves.save()
    assert error.value.what.startswith("cannot send the view Halves")
    assert "write it in a file or a cell" in error.value.next


def test_a_view_that_may_not_run_on_a_server_is_refused_with_its_line(far):
    import os

    class Lists(View):
        @property
        def listed(self):
            return os.listdir(".")

    far.add_views({GPT2Block: Lists})
    with pytest.raises(FunctionWhitelistError, match=r"^os on test_views_there\.py, line"):
        with far.trace(PROMPT, remote="http://127.0.0.1:1"):
            far.transformer.h[0].output.save()


def test_a_view_whose_body_reads_what_nobody_knows_any_more_is_refused(far):
    width = 32

    class Sliced(View):
        width_of_all = width

        @property
        def sliced(self):
            return self.output[..., : self.width_of_all]

    far.add_views({GPT2Block: Sliced})
    with pytest.raises(NotSendableError, match="cannot send the view Sliced") as error:
        with far.trace(PROMPT, remote="http://127.0.0.1:1"):
            far.transformer.h[0].sliced.save()
    assert "its body reads width, a variable of the function" in error.value.why


def test_a_view_with_a_value_that_cannot_go_is_refused(far):
    optimizer = torch.optim.SGD([torch.zeros(2, requires_grad=True)], lr=0.1)

    class Learns(View):
        @property
        def rate(self):
            return optimizer.param_groups[0]["lr"]

    far.add_views({GPT2Block: Learns})
    with pytest.raises(NotSendableError, match=r"cannot send 'optimizer' \(torch\.optim\.SGD\)"):
        with far.trace(PROMPT, remote="http://127.0.0.1:1"):
            far.transformer.h[0].output.save()


def test_a_module_beside_the_model_is_refused_where_a_block_or_an_edit_uses_it(far):
    far.transformer.h[1].probe = torch.nn.Linear(128, 3)
    far.attach("other", torch.nn.Linear(128, 128))
    with pytest.raises(NotSendableError) as error:
        with far.trace(PROMPT, remote="http://127.0.0.1:1"):
            h = far.transformer.h[1].output
            for layer in far.transformer.h:
                layer.probe(h).save()
    assert error.value.what.startswith("cannot send 'probe' (torch.nn.Linear) used at test_views")
    assert "build it inside the block" in error.value.next
    with far.edit() as edited:
        far.transformer.h[1].output[:] = far.other(far.transformer.h[1].output)
    with pytest.raises(NotSendableError, match="cannot send 'other'"):
        with edited.trace(PROMPT, remote="http://127.0.0.1:1"):
            edited.lm_head.output.save()


def test_a_module_beside_the_model_that_a_block_does_not_use_is_no_matter(far, demo, remote):
    class Other:
        probe = 3

    other = Other.probe
    far.transformer.h[1].probe = torch.nn.Linear(128, 3)
    with far.trace(PROMPT, remote=remote):
        h = (far.transformer.h[1].output + other).save()
    with demo.trace(PROMPT):
        want = demo.transformer.h[1].output + other
    torch.testing.assert_close(h, want)


def test_a_view_of_modules_that_the_server_has_not_is_told(demo):
    views = [("mylab.models.Attention", views_of(demo)[0][1])]
    sent = block.Block("trace", (PROMPT,), {}, None, views=views)
    before = demo._names
    with pytest.raises(run.BlockFailed) as error:
        run.run(demo, sent, SimpleNamespace(log=print), Limits())
    assert error.value.fault.kind == "insitu.UsageError"
    assert "the view Heads is of mylab.models.Attention" in error.value.fault.text
    assert demo._names is before


@pytest.mark.parametrize(
    "views", [[["a.B", 3]], [["a.B"]], {"a": 1}, [["a.B", {"name": "torch:Tensor"}]]]
)
def test_what_is_no_view_is_no_request(demo, views):
    header, tensors = block.sent(block.Block("trace", (PROMPT,), {}, None), demo, "demo", "3.11")
    with pytest.raises(WireError):
        block.received({**header, "views": views}, tensors, demo)


def test_names_and_edits_that_came_along_go_with_their_block(demo):
    """A process that runs several blocks, as for a model on a GPU, gives each what is its own."""
    far = LanguageModel("demo", views=own_views(3.0), rename={"transformer.h": "blocks"})
    text = block.Text("model.transformer.h[0].output[:] = 0\n", "x.py", 1, (), None, {})
    sent = block.Block(
        "trace", (PROMPT,), {}, None, edits=[text], views=views_of(far),
        renamed={"anywhere": {}, "placed": [["", "blocks", "transformer.h"]]},
    )  # fmt: skip
    text.names["model"] = demo
    before, edits = demo._names, list(demo._edits)
    out = run.run(demo, sent, SimpleNamespace(log=print), Limits())[run.RETURNED]
    assert demo._names is before
    assert demo._edits == edits == []
    assert not torch.allclose(out.logits, demo.trace(PROMPT).logits)


def test_usage_errors_of_views_are_told_as_at_home():
    with pytest.raises(UsageError):
        LanguageModel("demo", dispatch=False, views={GPT2Block: 3})
