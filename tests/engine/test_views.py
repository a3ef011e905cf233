"""Further names: renamed modules, views of their values, and modules of the user's own."""

import copy

import pytest
import torch
from reference import edited, inputs, outputs
from torch import nn
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Attention, GPT2Block

import insitu
from insitu import LanguageModel, NNsight, View

PROMPT = "The Eiffel Tower is in the city of"


@pytest.fixture
def gpt2(llm):
    return llm


@pytest.fixture
def ids(gpt2):
    return gpt2.tokenizer(PROMPT, return_tensors="pt")["input_ids"]


# Renames ----------------------------------------------------------------------------------------


def test_a_path_gets_a_further_name_at_the_root(gpt2, ids):
    gpt2.rename({"transformer.h": "layers", "transformer.ln_f": "final_norm"})
    assert gpt2.layers is gpt2.transformer.h
    assert gpt2.layers[2] is gpt2.transformer.h[2]
    with gpt2.trace(PROMPT):
        hidden = gpt2.layers[2].output
        final = gpt2.final_norm.output
    expected = outputs(gpt2._module, ["transformer.h.2", "transformer.ln_f"], ids)
    assert torch.equal(hidden, expected["transformer.h.2"][0])
    assert torch.equal(final, expected["transformer.ln_f"][0])


def test_a_bare_name_is_renamed_wherever_it_is(gpt2, ids):
    gpt2.rename({"attn": "attention", "lm_head": "unembed"})
    with gpt2.trace(PROMPT):
        for block in gpt2.transformer.h:
            block.attention.output[0][:] = 0
        logits = gpt2.unembed.output
    zero = {f"transformer.h.{i}.attn": lambda out, _: (out[0] * 0, out[1]) for i in range(4)}
    assert torch.equal(logits, edited(gpt2._module, zero, ids).logits)
    with pytest.raises(insitu.UnknownModuleError):
        gpt2.transformer.attention


def test_renames_at_construction_and_several_names_for_one(tiny_gpt2, net):
    hf_model, tokenizer = tiny_gpt2
    model = LanguageModel(hf_model, tokenizer=tokenizer, rename={"transformer.h": "layers"})
    assert model.layers is model.transformer.h
    small = NNsight(net, rename={"layer1": ["first", "encoder"]})
    assert small.first is small.encoder is small.layer1


def test_a_further_name_may_be_used_in_another_rename(gpt2):
    gpt2.rename({"transformer": "body", "body.h": "layers", "attn": "attention"})
    gpt2.rename({"attention": "att", "layers.0.mlp": "body.first_mlp"})
    assert gpt2.layers[1].att is gpt2.transformer.h[1].attn
    assert gpt2.body.first_mlp is gpt2.transformer.h[0].mlp


def test_one_further_name_may_stand_for_several_that_never_meet():
    net = nn.Sequential(
        nn.ModuleDict({"attn": nn.Linear(2, 2)}), nn.ModuleDict({"self_attn": nn.Linear(2, 2)})
    )
    model = NNsight(net, rename={"attn": "attention", "self_attn": "attention"})
    assert model[0].attention is model[0].attn
    assert model[1].attention is model[1].self_attn


def test_paths_take_further_names(gpt2, ids):
    gpt2.rename({"transformer.h": "layers", "mlp": "feed"})
    assert gpt2["layers.0.feed"] is gpt2.transformer.h[0].mlp
    assert gpt2["transformer"]["h"][0]["feed"] is gpt2.transformer.h[0].mlp
    with gpt2.open(PROMPT) as run:
        run.until("layers.1.feed.output")
        assert run.where == "transformer.h.1.mlp.output"
        assert torch.equal(run.value, gpt2.layers[1].feed.output)


def test_errors_keep_the_real_path(gpt2):
    gpt2.rename({"transformer.h": "layers"})
    with pytest.raises(insitu.OutOfOrderError, match=r"^transformer\.h\.0\.output was asked for"):
        with gpt2.trace(PROMPT):
            gpt2.layers[2].output
            gpt2.layers[0].output


def test_a_misspelt_further_name_finds_the_near_one(gpt2):
    gpt2.rename({"transformer.h": "layers"})
    with pytest.raises(insitu.UnknownModuleError) as caught:
        gpt2.layer
    assert caught.value.next == "did you mean layers?"


def test_a_renamed_module_the_user_replaces_is_found(net, x):
    model = NNsight(net, rename={"layer1": "first"})
    with model.trace(x):
        model.first.output
    net.layer1 = nn.Linear(5, 10)
    with model.trace(x):
        new = model.first.output
    assert torch.equal(new, net.layer1(x))


def test_renaming_again_as_a_cell_run_twice_does_changes_nothing(gpt2):
    for _ in range(2):
        gpt2.rename({"transformer.h": "layers", "attn": "attention"})
    assert gpt2.layers[0].attention is gpt2.transformer.h[0].attn


@pytest.mark.parametrize(
    ("wanted", "error", "says"),
    [
        ({"atn": "attention"}, insitu.UnknownModuleError, "(?s)'atn'.*did you mean 'attn'"),
        ({"transformer.x": "layers"}, insitu.UnknownModuleError, "transformer has no module.*'x'"),
        ({"lm_head": "nowhere.head"}, insitu.UnknownModuleError, "no module.*'nowhere'"),
        ({"attn": "mlp"}, insitu.UsageError, "h.0 has something called 'mlp' already: a module"),
        ({"attn": "output"}, insitu.UsageError, "already: every wrapped module has it"),
        ({"attn": "training"}, insitu.UsageError, "already: an attribute of GPT2Block"),
        ({"lm_head": "trace"}, insitu.UsageError, "model has something called 'trace' already"),
        ({"lm_head": "generator"}, insitu.UsageError, "called 'generator' already: a module"),
        ({"lm_head": "tokenizer"}, insitu.UsageError, "called 'tokenizer' already"),
        ({"attn": "x", "mlp": "x"}, insitu.UsageError, "already: another name of attn"),
        ({"transformer.h": "l", "lm_head": "l"}, insitu.UsageError, "other name of transformer.h"),
        ({"attn": "0a"}, insitu.UsageError, "'0a' cannot be the name of a module"),
        ({"attn": "class"}, insitu.UsageError, "cannot be the name of a module"),
        ({"attn": "_a"}, insitu.UsageError, "cannot be the name of a module"),
        ({"attn": 3}, insitu.UsageError, "3 cannot be the name of a module"),
        ("attn", insitu.UsageError, "rename takes names"),
    ],
)
def test_a_rename_that_cannot_be_is_refused_and_changes_nothing(gpt2, wanted, error, says):
    before = repr(gpt2), dir(gpt2)
    with pytest.raises(error, match=says):
        gpt2.rename({"wte": "embed", **wanted} if isinstance(wanted, dict) else wanted)
    assert (repr(gpt2), dir(gpt2)) == before


def test_completion_and_print_show_further_names(gpt2):
    gpt2.rename({"transformer.h": "layers", "attn": "attention"})
    assert "layers" in dir(gpt2)
    assert "attention" in dir(gpt2.layers[0])
    assert "attention" not in dir(gpt2)
    text = repr(gpt2)
    assert text.startswith(repr(gpt2._module))
    assert text.endswith("\nRenamed: layers = transformer.h, attention = attn (anywhere)")
    assert repr(gpt2.layers[0]).endswith("\nRenamed: attention = attn")
    assert repr(gpt2.layers[0].mlp) == repr(gpt2._module.transformer.h[0].mlp)


# Views ------------------------------------------------------------------------------------------


class Heads(View):
    """What each attention head gives, before the heads are mixed: [batch, pos, head, d_head]."""

    scale = 1 / 8**0.5

    @property
    def heads(self):
        return self.c_proj.input.unflatten(-1, (self.num_heads, self.head_dim))

    @heads.setter
    def heads(self, value):
        self.c_proj.input = value.flatten(-2)

    def head(self, number):
        return self.heads[:, :, number]


class Queries(View):
    """Queries, keys and values as GPT-2's fused projection returns them, by head."""

    def _part(self, number):
        width = self.embed_dim
        part = self.c_attn.output[..., number * width : (number + 1) * width]
        return part.unflatten(-1, (self.num_heads, self.head_dim))

    @property
    def q(self):
        return self._part(0)

    @property
    def k(self):
        return self._part(1)

    @property
    def v(self):
        return self._part(2)


@pytest.fixture
def viewed(gpt2):
    gpt2.add_views({GPT2Attention: [Heads, Queries]})
    return gpt2


ATTN = "transformer.h.1.attn"


def by_head(tensor):
    return tensor.unflatten(-1, (4, 8))


def heads_edited(net, change, ids):
    """The oracle: the attention's output projection, given other heads."""
    projection = net.get_submodule(f"{ATTN}.c_proj")

    def give(module, args):
        heads = by_head(args[0].clone())
        return (change(heads).flatten(-2),)

    handle = projection.register_forward_pre_hook(give)
    try:
        return net(ids).logits
    finally:
        handle.remove()


def test_heads_are_read(viewed, ids):
    with viewed.trace(PROMPT):
        heads = viewed.transformer.h[1].attn.heads.clone()
        third = viewed.transformer.h[1].attn.head(3)
    (args, _), *_ = inputs(viewed._module, [f"{ATTN}.c_proj"], ids)[f"{ATTN}.c_proj"]
    assert heads.shape == (1, ids.shape[1], 4, 8)
    assert torch.equal(heads, by_head(args[0]))
    assert torch.equal(third, heads[:, :, 3])
    assert viewed.transformer.h[1].attn.scale == Heads.scale


def test_queries_keys_and_values_are_read(viewed, ids):
    with viewed.trace(PROMPT):
        attn = viewed.transformer.h[1].attn
        q, k, v = attn.q, attn.k, attn.v
    fused = outputs(viewed._module, [f"{ATTN}.c_attn"], ids)[f"{ATTN}.c_attn"][0]
    for part, expected in zip((q, k, v), fused.split(32, dim=-1), strict=True):
        assert torch.equal(part, by_head(expected))


def zero_head(heads):
    heads[:, :, 2] = 0
    return heads


def test_an_in_place_edit_writes_through(viewed, ids):
    with viewed.trace(PROMPT):
        viewed.transformer.h[1].attn.heads[:, :, 2] = 0
        logits = viewed.lm_head.output
    assert torch.equal(logits, heads_edited(viewed._module, zero_head, ids))
    assert not torch.equal(logits, viewed._module(ids).logits)


def test_replacing_a_view_replaces_the_value(viewed, ids):
    with viewed.trace(PROMPT):
        attn = viewed.transformer.h[1].attn
        attn.heads = attn.heads.flip(2)
        logits = viewed.lm_head.output
    assert torch.equal(logits, heads_edited(viewed._module, lambda heads: heads.flip(2), ids))


def test_augmented_assignment_needs_no_setter(viewed, ids):
    with viewed.trace(PROMPT):
        viewed.transformer.h[1].attn.v *= 0
        logits = viewed.lm_head.output
    expected = {f"{ATTN}.c_attn": lambda out, _: torch.cat((out[..., :64], out[..., 64:] * 0), -1)}
    assert torch.equal(logits, edited(viewed._module, expected, ids).logits)


def test_a_view_without_a_setter_cannot_be_replaced(viewed):
    with pytest.raises(insitu.WriteError) as caught, viewed.trace(PROMPT):
        attn = viewed.transformer.h[1].attn
        attn.q = attn.q + 1
    assert caught.value.what == f"{ATTN}.q cannot be replaced: its view has no setter."


def test_a_value_that_does_not_fit_is_refused_at_its_site(viewed):
    with pytest.raises(insitu.WriteError, match=r"c_proj\.input does not fit: shape"):
        with viewed.trace(PROMPT):
            attn = viewed.transformer.h[1].attn
            attn.heads = attn.heads[:, :2]


def test_views_are_read_in_every_step(viewed, ids):
    norms = []
    with viewed.generate(PROMPT, max_new_tokens=3) as tracer:
        for _ in tracer.iter[:]:
            norms.append(viewed.transformer.h[1].attn.heads.shape[1])
    assert norms == [ids.shape[1], 1, 1]


def test_views_in_invokes_see_their_own_rows(viewed, ids):
    with viewed.trace() as tracer:
        with tracer.invoke(PROMPT):
            viewed.transformer.h[1].attn.heads[:, :, 2] = 0
            changed = viewed.lm_head.output.save()
        with tracer.invoke(PROMPT):
            heads = viewed.transformer.h[1].attn.heads.save()
            untouched = viewed.lm_head.output.save()
    assert heads.shape == (1, ids.shape[1], 4, 8)
    assert heads[:, :, 2].any()
    alone = heads_edited(viewed._module, zero_head, ids)
    torch.testing.assert_close(changed, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(untouched, viewed._module(ids).logits, rtol=1e-4, atol=1e-5)


def test_a_view_outside_a_trace_says_so(viewed):
    with pytest.raises(insitu.NoTraceError, match=f"{ATTN}.c_proj"):
        viewed.transformer.h[1].attn.heads


def test_views_read_too_late_point_at_the_users_line(viewed):
    with pytest.raises(insitu.OutOfOrderError, match=r"c_proj\.input was asked for") as caught:
        with viewed.trace(PROMPT):
            viewed.transformer.h[2].output
            viewed.transformer.h[1].attn.heads
    frames = [entry.name for entry in caught.traceback]
    assert frames[0] == "test_views_read_too_late_point_at_the_users_line"
    assert not any("insitu/engine" in str(entry.path) for entry in caught.traceback)


def test_what_a_view_reads_counts_as_read_at_the_users_line(viewed):
    with pytest.raises(insitu.OutOfOrderError) as caught, viewed.trace(PROMPT):
        viewed.transformer.h[2].attn.heads
        viewed.transformer.h[1].output
    first = test_what_a_view_reads_counts_as_read_at_the_users_line.__code__.co_firstlineno
    assert f"c_proj.input (line {first + 2})" in caught.value.why
    assert f"above line {first + 2}" in caught.value.next


@pytest.mark.parametrize("late", [False, True])
def test_a_view_by_heads_has_the_gradient_of_what_it_divides(viewed, ids, late):
    viewed._module.requires_grad_(True)
    try:
        with viewed.trace(PROMPT):
            attn = viewed.transformer.h[1].attn
            v, heads = attn.v, attn.heads
            loss = viewed.lm_head.output.pow(2).sum()
            with loss.backward():
                given = None if late else heads.grad.clone()
                found = v.grad.clone()
                given = heads.grad.clone() if late else given
        kept = {}

        def keep(module, args, out):
            kept[module] = args[0], out
            args[0].retain_grad()
            out.retain_grad()

        attn = viewed._module.transformer.h[1].attn
        handles = [m.register_forward_hook(keep) for m in (attn.c_proj, attn.c_attn)]
        logits = viewed._module(ids).logits
        for handle in handles:
            handle.remove()
        logits.pow(2).sum().backward()
        close = {"rtol": 1e-3, "atol": 1e-4}
        torch.testing.assert_close(given, by_head(kept[attn.c_proj][0].grad), **close)
        torch.testing.assert_close(found, by_head(kept[attn.c_attn][1].grad[..., 64:]), **close)
    finally:
        viewed._module.requires_grad_(False)
        viewed._module.zero_grad()


def test_a_tensor_that_a_model_views_itself_has_its_own_gradient():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.divide = nn.Linear(4, 4), nn.Unflatten(-1, (2, 2))

        def forward(self, x):
            whole = self.linear(x)
            return self.divide(whole).sum() * 2 + whole.sum() * 3

    model = NNsight(Both())
    with model.trace(torch.rand(1, 4)):
        divided = model.divide.output
        loss = model.output
        with loss.backward():
            assert torch.equal(divided.grad, torch.full((1, 2, 2), 2.0))


def test_views_of_a_base_class_and_at_construction(net, x):
    class Norms(View):
        @property
        def norm(self):
            return self.output.norm()

        @norm.setter
        def norm(self, value):
            self.output = self.output * (value / self.output.norm())

    model = NNsight(net, views={nn.Module: Norms})
    with model.trace(x):
        first = model.layer1.norm
        model.layer1.norm = 1.0
        again = model.layer1.norm
        whole = model.norm
    assert torch.equal(first, net.layer1(x).norm())
    assert again.item() == pytest.approx(1)
    assert torch.equal(whole, net.layer2(net.layer1(x) * (1 / first)).norm())


def test_a_views_own_attribute_error_is_not_hidden(net, x):
    class Broken(View):
        @property
        def broken(self):
            return self.output.no_such_method()

        @property
        def around(self):
            return self.broken

    model = NNsight(net, views={nn.Linear: Broken})
    with pytest.raises(AttributeError, match="no_such_method"), model.trace(x):
        model.layer1.broken
    with pytest.raises(AttributeError, match=r"Broken\.broken could not be read"), model.trace(x):
        model.layer1.around


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({GPT2MLP: Heads, nn.Bilinear: Heads}, "given Bilinear, and this model has no such"),
        ({"attn": Heads}, "'attn', which is not a class of modules"),
        ({GPT2Attention: int}, "not a class derived from insitu.View"),
        ({GPT2Attention: View}, "not a class derived from insitu.View"),
        (Heads, "views= was given type"),
    ],
)
def test_views_that_cannot_be_are_refused_and_change_nothing(gpt2, wanted, says):
    before = repr(gpt2)
    with pytest.raises(insitu.UsageError, match=says):
        gpt2.add_views(wanted)
    assert repr(gpt2) == before


@pytest.mark.parametrize("name", ["c_proj", "num_heads", "output", "heads"])
def test_a_view_that_would_hide_something_is_refused(viewed, name):
    other = type("Other", (View,), {name: property(lambda self: 0)})
    with pytest.raises(insitu.UsageError, match=f"has something called '{name}' already"):
        viewed.add_views({GPT2Attention: other})


def test_adding_a_view_again_changes_nothing(viewed):
    before = repr(viewed)
    viewed.add_views({GPT2Attention: Heads})
    assert repr(viewed) == before


def test_completion_and_print_show_views(viewed):
    assert {"heads", "head", "q", "k", "v", "c_proj", "output"} <= set(
        dir(viewed.transformer.h[0].attn)
    )
    assert "heads" not in dir(viewed.transformer.h[0].mlp)
    assert "\nViews: GPT2Attention.head, GPT2Attention.heads" in repr(viewed)
    assert repr(viewed.transformer.h[0].attn).endswith("Views: head, heads, scale, k, q, v")


# Attached modules -------------------------------------------------------------------------------


class SAE(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.encoder = nn.Linear(32, 64)
        self.decoder = nn.Linear(64, 32)

    def forward(self, hidden):
        return self.decoder(self.encoder(hidden).relu())


@pytest.fixture
def sae():
    return SAE()


def test_an_attached_module_is_named_called_and_printed(gpt2, sae, ids):
    gpt2.transformer.h[1].sae = sae
    node = gpt2.transformer.h[1].sae
    assert node is gpt2["transformer.h.1.sae"]
    assert node.encoder._path == "transformer.h.1.sae.encoder"
    assert node.encoder.weight is sae.encoder.weight
    with gpt2.trace(PROMPT):
        hidden = gpt2.transformer.h[1].output
        gpt2.transformer.h[1].output = gpt2.transformer.h[1].sae(hidden)
        logits = gpt2.lm_head.output
    replaced = edited(gpt2._module, {"transformer.h.1": lambda out, _: sae(out)}, ids).logits
    assert torch.equal(logits, replaced)
    assert "sae" in dir(gpt2.transformer.h[1])
    assert "sae" not in dir(gpt2.transformer.h[0])
    assert repr(gpt2).endswith("\nAttached: transformer.h.1.sae = SAE")
    assert repr(gpt2.transformer.h[1]).endswith("\nAttached: sae = SAE")


def test_attaching_leaves_the_users_model_as_it_is(tiny_gpt2, sae):
    hf_model = copy.deepcopy(tiny_gpt2[0])
    model = NNsight(hf_model)
    before = list(hf_model.state_dict()), [dict(m._modules) for m in hf_model.modules()]
    model.attach("probe", nn.Linear(2, 2))
    model.attach("sae", sae, at="transformer.h.1")
    after = list(hf_model.state_dict()), [dict(m._modules) for m in hf_model.modules()]
    assert after == before
    assert len(list(model.transformer.h[1])) == len(hf_model.transformer.h[1]._modules)
    assert not hasattr(NNsight(hf_model).transformer.h[1], "sae")


def test_attaching_by_method_path_or_node(gpt2, sae):
    gpt2.rename({"transformer.h": "layers"})
    assert gpt2.attach("sae", sae, at="layers.2") is gpt2.transformer.h[2].sae
    assert gpt2.attach("probe", sae, at=gpt2.layers[0].mlp)._path == "transformer.h.0.mlp.probe"
    assert gpt2.attach("own", sae) is gpt2.own
    assert gpt2.own._path == "own"


def test_attaching_again_replaces_and_del_takes_away(gpt2, sae):
    block = gpt2.transformer.h[1]
    block.sae = sae
    first = block.sae
    block.sae = other = SAE()
    assert block.sae is not first
    assert block.sae._module is other
    del block.sae
    with pytest.raises(insitu.UnknownModuleError):
        block.sae
    assert "Attached" not in repr(gpt2)
    with pytest.raises(AttributeError):
        del block.sae


def test_an_attached_module_outlives_the_module_it_is_at(net, x):
    model = NNsight(net)
    model.layer1.probe = probe = nn.Linear(10, 1)
    net.layer1 = nn.Linear(5, 10)
    assert model["layer1.probe"]._module is probe
    with model.trace(x):
        found = model.layer1.probe(model.layer1.output)
    assert torch.equal(found, probe(net.layer1(x)))


def test_an_edited_copy_keeps_further_names(net, x):
    model = NNsight(net, rename={"layer1": "first"})
    model.layer1.probe = probe = nn.Linear(10, 1)
    with model.edit() as edited_model:
        model.first.output[:] = 0
    with edited_model.trace(x):
        hidden = edited_model.first.output
        found = edited_model.first.probe(hidden)
    assert not hidden.any()
    assert torch.equal(found, probe(hidden))


@pytest.mark.parametrize("name", ["mlp", "output", "skip", "training", "further", "norm"])
def test_a_name_that_something_has_is_not_taken_over(gpt2, sae, name):
    class Norms(View):
        @property
        def norm(self):
            return self.output.norm()

    gpt2.rename({"attn": "further"})
    gpt2.add_views({GPT2Block: Norms})
    with pytest.raises(insitu.UsageError, match=f"has something called '{name}' already"):
        gpt2.attach(name, sae, at="transformer.h.1")
    assert gpt2.transformer.h[1].mlp._module is gpt2._module.transformer.h[1].mlp


def test_assigning_over_a_module_of_the_models_is_refused(gpt2, sae):
    for node, name in ((gpt2.transformer.h[1], "mlp"), (gpt2, "generator"), (gpt2, "lm_head")):
        with pytest.raises(insitu.UsageError, match="already: a module"):
            setattr(node, name, sae)


def test_what_is_no_module_is_not_attached(gpt2):
    with pytest.raises(insitu.InputTypeError, match="can be attached, not function"):
        gpt2.attach("relu", lambda value: value)
    with pytest.raises(insitu.UsageError, match="cannot be the name of a module"):
        gpt2.attach("a b", nn.Linear(1, 1))
    with pytest.raises(insitu.UnknownModuleError, match="nothing called 'note'"):
        gpt2.transformer.h[0].note = "text"


def test_attached_and_viewed_work_together(gpt2, sae):
    class Sparsity(View):
        def active(self, hidden):
            return (self.encoder(hidden) > 0).sum()

    gpt2.transformer.h[1].sae = sae
    gpt2.add_views({SAE: Sparsity})
    gpt2.rename({"encoder": "dictionary"})
    node = gpt2.transformer.h[1].sae
    hidden = torch.ones(1, 32)
    assert node.active(hidden) == (sae.encoder(hidden) > 0).sum()
    assert node.dictionary is node.encoder
