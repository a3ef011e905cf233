"""Names that an upgrade has moved: an error that says where to, never another value."""

import json
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from insitu import NNsight, UnknownOperationError
from insitu.engine.source import moved
from insitu.engine.source.kept import plan_of
from insitu.engine.source.moved import Table, fate_of, fingerprints, key_of, text_mark

BEFORE = """
    import torch
    from torch import nn

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.o_proj = nn.Linear(4, 4)

        def forward(self, x):
            q = torch.mul(x, 2)
            scores = torch.matmul(q, x.transpose(0, 1))
            h = torch.matmul(scores, x)
            h = h / 2
            return self.o_proj(h)
"""
AFTER = """
    import torch
    from torch import nn

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.o_proj = nn.Linear(4, 4)

        def forward(self, x):
            x = self.o_proj(x)
            q = torch.mul(x, self.scale)
            rotated = torch.matmul(q, torch.eye(4))
            scores = torch.matmul(q, x.transpose(0, 1))
            h = torch.matmul(scores, x)
            return self.o_proj(h)

        scale = 2
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A package of one module, `attentions.model`, as it is in some version."""
    versions = []

    def installed(text, version):
        lines = [line.removeprefix("    ") for line in text.splitlines()]
        path = tmp_path / f"model_{len(versions)}.py"
        path.write_text("\n".join(lines))
        versions.append(version)
        package, module = ModuleType("attentions"), ModuleType("attentions.model")
        package.__version__ = version
        monkeypatch.setitem(sys.modules, "attentions", package)
        exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
        return module.Attention

    return installed


def table_of(function, version):
    plan = plan_of(function)
    entry = {"text": text_mark(plan.definition), "operations": fingerprints(plan)}
    return Table("attentions", version, {key_of(function): entry})


@pytest.fixture
def upgraded(install, monkeypatch):
    """A model of version 2 under a table of version 1."""
    table = table_of(install(BEFORE, "1.0").forward, "1.0")
    monkeypatch.setattr(moved, "table", lambda: table)
    torch.manual_seed(0)
    return NNsight(install(AFTER, "2.0")())


def test_a_name_that_moved_says_where_to(upgraded):
    for name, now, use in (
        ("torch_matmul_0", "torch_matmul_1", "[4]"),  # once the name of another
        ("torch_matmul_1", "torch_matmul_2", ".torch_matmul_2"),
        ("self_o_proj_0", "self_o_proj_1", ".self_o_proj_1"),
    ):
        with pytest.raises(UnknownOperationError) as caught:
            getattr(upgraded.source, name)
        error = caught.value
        assert error.what == f"model.source.{name} moved to {now} (attentions 1.0 → 2.0)."
        assert "the name now stands for another one (line " in error.why
        assert error.next.startswith(f"use model.source{use} (line ")
        found = eval(f"model.source{use}", {"model": upgraded})
        assert found._name == now
    assert not hasattr(upgraded.source, "torch_matmul_0")


def test_the_operation_it_moved_to_is_read(upgraded):
    x = torch.rand(4, 4)
    with upgraded.trace(x):
        first = upgraded.source.torch_mul_0.output
        scores = upgraded.source[upgraded.source._plan.by_name["torch_matmul_1"].index].output
        out = upgraded.output
    net = upgraded._module
    q = net.o_proj(x) * 2
    assert torch.equal(first, q)
    assert torch.equal(scores, torch.matmul(q, net.o_proj(x).T))
    assert torch.equal(out, net(x))


def test_an_edited_call_that_is_clearly_the_same_keeps_its_name(upgraded):
    assert upgraded.source.torch_mul_0._path == "model.source.torch_mul_0"


def test_a_name_that_is_gone_says_so(upgraded):
    with pytest.raises(UnknownOperationError, match=r"assign_h_0 is gone \(attentions 1.0 → 2.0\)"):
        upgraded.source.assign_h_0


def test_names_that_the_table_does_not_know_are_as_they_are(upgraded):
    assert upgraded.source.torch_eye_0
    with pytest.raises(UnknownOperationError, match="has no operation 'nothing_0'"):
        upgraded.source.nothing_0


def test_an_unchanged_class_is_trusted(install, monkeypatch):
    table = table_of(install(BEFORE, "1.0").forward, "1.0")
    monkeypatch.setattr(moved, "table", lambda: table)
    model = NNsight(install(BEFORE, "1.1")())
    assert all(model.source[it._name] is getattr(model.source, it._name) for it in model.source)


@pytest.mark.parametrize(
    ("name", "then", "now", "fate"),
    [
        ("f_0", {"f_0": "A"}, {"f_0": "A"}, ["f_0"]),
        ("f_0", {"f_0": "A"}, {"f_0": "B", "f_1": "A"}, ["f_1"]),
        ("f_0", {"f_0": "A", "f_1": "B"}, {"f_0": "B", "f_1": "A"}, ["f_1"]),
        ("f_0", {"f_0": "A"}, {"g_0": "A"}, ["g_0"]),  # the callee has another name
        ("f_0", {"f_0": "A"}, {"f_0": "B"}, ["f_0"]),  # its arguments were edited
        ("f_1", {"f_0": "A", "f_1": "B"}, {"f_0": "C", "f_1": "A", "f_2": "D"}, ["f_0", "f_2"]),
        ("f_0", {"f_0": "A"}, {"g_0": "B"}, []),
        ("f_1", {"f_0": "A", "f_1": "A"}, {"f_0": "A", "f_1": "A"}, ["f_1"]),
        ("f_1", {"f_0": "A", "f_1": "A"}, {"f_0": "A", "f_1": "B", "f_2": "A"}, ["f_2"]),
        ("f_0", {"f_0": "A", "f_1": "A"}, {"f_0": "A", "f_1": "A", "f_2": "A"},
         ["f_0", "f_1", "f_2"]),
        ("g_0", {"f_0": "A"}, {"f_0": "A", "g_0": "B"}, None),
    ],
)  # fmt: skip
def test_what_becomes_of_a_name(name, then, now, fate):
    assert fate_of(name, then, now) == fate


def test_several_that_it_may_be_are_named(install, monkeypatch):
    table = table_of(install(BEFORE, "1.0").forward, "1.0")
    monkeypatch.setattr(moved, "table", lambda: table)
    text = BEFORE.replace("h = h / 2", "h = h / 3\n            h = h / 4")
    model = NNsight(install(text, "2.0")())
    with pytest.raises(UnknownOperationError) as caught:
        model.source.assign_h_0
    assert "may be one of several now: assign_h_0, assign_h_1 (attentions" in caught.value.what
    assert model.source[model.source._plan.by_name["assign_h_1"].index]._name == "assign_h_1"


def test_the_packages_table_is_small_and_that_of_what_is_installed():
    import transformers
    from transformers.models.gpt2.modeling_gpt2 import GPT2Attention
    from transformers.models.llama.modeling_llama import LlamaAttention, eager_attention_forward

    table = moved.table()
    assert table.package == "transformers"
    size = len(json.dumps(table.functions))
    assert size < 60_000
    if table.version == transformers.__version__:
        for function in (GPT2Attention.forward, LlamaAttention.forward, eager_attention_forward):
            plan = plan_of(function)
            entry = table.functions[key_of(function)]
            assert entry == {
                "text": text_mark(plan.definition),
                "operations": fingerprints(plan),
            }


def test_an_upgrade_of_llama_is_noticed(monkeypatch):
    from transformers import LlamaConfig
    from transformers.models.llama import modeling_llama

    config = LlamaConfig(
        hidden_size=8, num_attention_heads=2, num_key_value_heads=2, num_hidden_layers=1
    )
    net = nn.ModuleDict({"attn": modeling_llama.LlamaAttention(config, 0)})
    plan = plan_of(modeling_llama.LlamaAttention.forward)
    then = dict(
        moved.table().functions[key_of(modeling_llama.LlamaAttention.forward)]["operations"]
    )
    then["self_q_proj_0"], then["self_k_proj_0"] = then["self_k_proj_0"], then["self_q_proj_0"]
    entry = {"text": "other", "operations": then}
    key = key_of(modeling_llama.LlamaAttention.forward)
    table = Table("transformers", "4.0.0", {key: entry})
    monkeypatch.setattr(moved, "table", lambda: table)
    source = NNsight(net).attn.source
    with pytest.raises(UnknownOperationError, match="self_q_proj_0 moved to self_k_proj_0"):
        source.self_q_proj_0
    assert source.self_o_proj_0._index == plan.by_name["self_o_proj_0"].index
