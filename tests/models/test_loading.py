"""A model by name: from folders and caches without asking anyone, and one clear error otherwise."""

import gc
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import weakref

import pytest
import torch
import transformers
from families import FAMILIES

import insitu
from insitu import LanguageModel
from insitu.models import loading, memory

PROMPT = "The Eiffel Tower is in the city of"


@pytest.fixture
def no_network(monkeypatch):
    """The hub may be asked, and every question is noted and fails."""
    asked = []

    def refuse(*args, **kwargs):
        asked.append(args)
        raise OSError("the network was used")

    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client tries again and again
    return asked


def into_cache(folder, cache, name, revision="main", commit="0" * 40):
    """The files of a folder as the hub's client keeps them."""
    place = cache / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True, exist_ok=True)
    (place / "refs" / revision).write_text(commit)
    shutil.copytree(folder, place / "snapshots" / commit)


# Where a model is --------------------------------------------------------------------------------


def test_a_folder_asks_no_one(folder, no_network):
    LanguageModel(folder)
    LanguageModel(folder, dispatch=False).dispatch()
    LanguageModel(transformers.GPT2LMHeadModel.from_pretrained(folder, local_files_only=True))
    assert no_network == []


def test_a_cached_name_asks_no_one(folder, tmp_path, no_network):
    into_cache(folder, tmp_path / "hub", "someone/tiny")
    for dispatch in (True, False):
        llm = LanguageModel("someone/tiny", cache_dir=tmp_path / "hub", dispatch=dispatch)
        expected = LanguageModel(folder)(PROMPT).logits
        assert torch.equal(llm(PROMPT).logits, expected)
        assert llm.config._name_or_path == llm._module.name_or_path == "someone/tiny"
    found = LanguageModel(llm._module, cache_dir=tmp_path / "hub")
    assert found.tokenizer is None  # that cache is not where it looks by itself
    assert no_network == []


def test_a_name_that_is_not_cached_asks_the_hub(tmp_path, no_network):
    with pytest.raises(insitu.ModelNotFoundError, match="could not be opened"):
        LanguageModel("someone/else", cache_dir=tmp_path / "hub")
    assert no_network


def test_weights_that_are_missing_in_the_cache_are_asked_for(folder, tmp_path, no_network):
    into_cache(folder, tmp_path / "hub", "someone/tiny")
    (file,) = (tmp_path / "hub").rglob("model.safetensors")
    file.unlink()
    llm = LanguageModel("someone/tiny", cache_dir=tmp_path / "hub", dispatch=False)
    with llm.scan(PROMPT):
        assert llm.lm_head.output.shape[-1] == 330
    assert no_network == []
    with pytest.raises(insitu.ModelNotFoundError):
        llm.dispatch()
    assert no_network


def test_a_revision_is_the_one_that_is_opened(folder, tmp_path, no_network):
    into_cache(folder, tmp_path / "hub", "someone/tiny")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_ctx_note": "second"}))
    into_cache(folder, tmp_path / "hub", "someone/tiny", "v2", "1" * 40)
    where = {"cache_dir": tmp_path / "hub"}
    assert LanguageModel("someone/tiny", revision="v2", **where).config.n_ctx_note == "second"
    assert not hasattr(LanguageModel("someone/tiny", **where).config, "n_ctx_note")
    assert no_network == []


@pytest.mark.slow
def test_a_cache_in_hf_home_is_enough(folder, tmp_path):
    into_cache(folder, tmp_path / "home" / "hub", "someone/tiny")
    program = (
        "import socket\n"
        "def refuse(*args, **kwargs): raise SystemExit('the network was used')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from insitu import LanguageModel\n"
        "print(tuple(LanguageModel('someone/tiny')('Once upon').logits.shape))\n"
    )
    env = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_HUB_CACHE")}
    env["HF_HOME"] = str(tmp_path / "home")
    ran = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ", 330)" in ran.stdout


def test_a_folder_of_an_adapter_names_its_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "gpt2"}')
    with pytest.raises(insitu.ModelNotFoundError, match=r"(?s)PEFT adapter.*add_adapter") as said:
        LanguageModel(tmp_path)
    assert "LanguageModel('gpt2')" in said.value.next


def test_broken_weights_say_so_and_leave_nothing(folder):
    (folder / "model.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(insitu.ModelNotFoundError, match="could not be opened"):
        LanguageModel(folder)


# Which class -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "mixtral", "mamba", "bert", "t5"])
def test_a_checkpoint_opens_as_the_class_it_was_saved_from(family, tmp_path):
    net = FAMILIES[family].built()
    net.save_pretrained(tmp_path)
    assert type(LanguageModel(tmp_path, tokenizer=object.__new__(Pads))._module) is type(net)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ("GPT2Config", "AutoModelForCausalLM"), ("BertConfig", "AutoModelForMaskedLM"),
        ("T5Config", "AutoModelForSeq2SeqLM"), ("XLNetConfig", "AutoModelForCausalLM"),
        ("ViTConfig", "AutoModel"),
    ],
)  # fmt: skip
def test_a_config_without_a_class_gets_one_by_its_kind(config, name):
    chosen = loading.language_class(transformers, getattr(transformers, config)())
    assert chosen is getattr(transformers, name)


class Pads:
    """What a tokenizer must have to be held."""

    padding_side = pad_token = eos_token = "x"


CODE = """
from transformers import GPT2Config, GPT2LMHeadModel
class OwnConfig(GPT2Config):
    model_type = "own"
class OwnModel(GPT2LMHeadModel):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(folder, tmp_path, monkeypatch):
    """A checkpoint whose classes are in a file beside its weights."""
    (folder / "modeling_own.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
    config.update(model_type="own", architectures=["OwnModel"], auto_map=auto)
    (folder / "config.json").write_text(json.dumps(config))
    for module in (transformers.dynamic_module_utils, transformers.utils.hub):
        if hasattr(module, "HF_MODULES_CACHE"):
            monkeypatch.setattr(module, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    return folder


def test_code_of_a_checkpoint_runs_only_when_trusted(own_code):
    with pytest.raises(
        insitu.ModelNotFoundError, match=r"(?s)code of its own.*trust_remote_code=T"
    ):
        LanguageModel(own_code)
    for dispatch in (True, False):
        llm = LanguageModel(own_code, trust_remote_code=True, dispatch=dispatch)
        assert type(llm._module).__name__ == "OwnModel"
        with llm.trace(PROMPT):
            assert llm.lm_head.output.shape[-1] == 330


# Settings ----------------------------------------------------------------------------------------


def test_settings_of_the_config_change_the_model(folder):
    for dispatch in (True, False):
        llm = LanguageModel(folder, attn_implementation="eager", dtype="bfloat16",
                            output_hidden_states=True, dispatch=dispatch)  # fmt: skip
        assert llm._module.dtype is torch.bfloat16
        assert llm.config._attn_implementation == "eager"
        with llm.trace(PROMPT) as tracer:
            assert tracer.result.hidden_states is not None


@pytest.fixture
def layer_on_disk(folder, tmp_path):
    place = {"transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.ln_f": "cpu",
             "lm_head": "cpu", **{f"transformer.h.{i}": "cpu" for i in range(4)},
             "transformer.h.1": "disk"}  # fmt: skip
    return {"device_map": place, "offload_folder": tmp_path / "off"}


@pytest.mark.parametrize("dispatch", [True, False])
def test_layers_on_disk_are_read_edited_and_generated_with(folder, layer_on_disk, dispatch):
    llm = LanguageModel(folder, dispatch=dispatch, **layer_on_disk)
    plain = LanguageModel(folder)
    for model, seen in ((llm, []), (plain, [])):
        with model.trace(PROMPT):
            seen.append(model.transformer.h[1].attn.c_attn.output)
            model.transformer.h[1].output[:, -1] *= 3
            seen.append(model.lm_head.output)
        with model.generate(PROMPT, max_new_tokens=3) as tracer:
            for step in tracer.iter[:]:
                if step == 1:
                    model.transformer.h[1].mlp.output[:] = 0
            seen.append(model.generator.output)
        with model.trace() as tracer:
            with tracer.invoke(PROMPT):
                seen.append(model.transformer.h[1].output)
            with tracer.invoke("Once upon"):
                seen.append(model.transformer.h[2].output)
        model.seen = seen
    for one, other in zip(llm.seen, plain.seen, strict=True):
        assert torch.equal(one, other)
    assert llm.transformer.h[1].mlp.c_fc.weight.is_meta  # back on disk
    assert hasattr(llm._module.transformer.h[1], "_hf_hook")  # accelerate's own is untouched


def test_an_embedding_on_disk_takes_ids_where_accelerate_computes(tmp_path, tiny_gpt2):
    FAMILIES["llama"].built().save_pretrained(tmp_path / "llama")
    llm = LanguageModel(
        tmp_path / "llama", tokenizer=tiny_gpt2[1], device_map={"model": "disk", "lm_head": "cpu"},
        offload_folder=tmp_path / "off",
    )  # fmt: skip
    plain = LanguageModel(tmp_path / "llama", tokenizer=tiny_gpt2[1])
    assert llm.device.type == "meta"
    assert torch.equal(llm(PROMPT).logits, plain(PROMPT).logits)


def test_device_map_auto(folder):
    llm = LanguageModel(folder, device_map="auto")
    assert torch.equal(llm(PROMPT).logits, LanguageModel(folder)(PROMPT).logits)


def test_a_setting_that_needs_a_missing_package_says_which(folder, monkeypatch):
    def needs(*args, **kwargs):
        raise ImportError("Using `halve` quantization requires halve: `pip install halve`")

    monkeypatch.setattr(transformers.GPT2LMHeadModel, "from_pretrained", needs)
    with pytest.raises(insitu.MissingPackageError, match=r"(?s)not installed.*pip install halve"):
        LanguageModel(folder)


def test_torchao_quantises_on_the_cpu(folder):
    pytest.importorskip("torchao")  # no part of the dev install: it prints at every import
    from torchao.quantization import Int8WeightOnlyConfig

    config = transformers.TorchAoConfig(Int8WeightOnlyConfig())
    plain = transformers.GPT2LMHeadModel.from_pretrained(folder, quantization_config=config)
    for dispatch in (True, False):
        llm = LanguageModel(folder, quantization_config=config, dispatch=dispatch)
        encoding = llm.tokenizer(PROMPT, return_tensors="pt")
        assert torch.equal(llm(PROMPT).logits, plain(**encoding).logits)


class HalvedLinear(torch.nn.Module):
    """A linear layer of another class, as quantisers put in."""

    def __init__(self, like):
        super().__init__()
        self.weight, self.bias = like.weight, like.bias

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight / 2, self.bias)


@pytest.fixture
def halving(monkeypatch):
    """A quantiser of our own, registered with transformers as theirs are."""
    from transformers.quantizers import HfQuantizer, auto
    from transformers.utils.quantization_config import QuantizationConfigMixin

    class HalveConfig(QuantizationConfigMixin):
        def __init__(self, **further):
            self.quant_method = "halve"

    class Halve(HfQuantizer):
        def __init__(self, config, **further):
            super().__init__(config, **further)

        def _process_model_before_weight_loading(self, model, **further):
            model.lm_head = HalvedLinear(model.lm_head)

        is_trainable = property(lambda self: False)

        def is_serializable(self, **further):
            return False

    monkeypatch.setitem(auto.AUTO_QUANTIZER_MAPPING, "halve", Halve)
    monkeypatch.setitem(auto.AUTO_QUANTIZATION_CONFIG_MAPPING, "halve", HalveConfig)
    return HalveConfig()


@pytest.mark.parametrize("dispatch", [True, False])
def test_a_quantised_model_has_the_quantisers_modules(tmp_path, tiny_gpt2, halving, dispatch):
    FAMILIES["llama"].built().save_pretrained(tmp_path)
    llm = LanguageModel(
        tmp_path, tokenizer=tiny_gpt2[1], quantization_config=halving, dispatch=dispatch
    )
    head = llm.lm_head
    plain = LanguageModel(tmp_path, tokenizer=tiny_gpt2[1])(PROMPT).logits
    with llm.trace(PROMPT):
        logits = head.output
    torch.testing.assert_close(logits * 2, plain)
    assert type(head._module) is HalvedLinear


# Memory ------------------------------------------------------------------------------------------


@pytest.fixture
def small_memory(monkeypatch):
    monkeypatch.setattr(memory, "_WORTH_ASKING_BYTES", 1)
    monkeypatch.setattr(memory, "free_bytes", lambda: 250_000)


def test_weights_that_do_not_fit_are_refused_before_they_are_read(
    folder, small_memory, monkeypatch
):
    monkeypatch.setattr(transformers.GPT2LMHeadModel, "from_pretrained", pytest.fail)
    size = (folder / "model.safetensors").stat().st_size
    assert 250_000 < size < 500_000
    with pytest.raises(insitu.ModelMemoryError, match=r"(?s)not enough memory.*device_map") as said:
        LanguageModel(folder)
    assert isinstance(said.value, MemoryError)


def test_what_is_stored_smaller_or_kept_elsewhere_is_not(folder, small_memory):
    assert LanguageModel(folder, dtype="bfloat16")._module.dtype is torch.bfloat16
    LanguageModel(folder, device_map="cpu")
    LanguageModel(folder, dispatch=False)


def test_free_memory_is_asked_of_the_system():
    free = memory.free_bytes()
    assert free is None or 0 < free < 2**50


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)  # fmt: skip
def test_memory_that_runs_out_leaves_nothing_half_loaded(folder, monkeypatch, error):
    llm = LanguageModel(folder, dispatch=False)
    half = []

    def run_out(*args, **kwargs):
        part = torch.nn.Linear(10, 10)
        half.append(weakref.ref(part))
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(transformers.GPT2LMHeadModel, "from_pretrained", run_out)
        with pytest.raises(insitu.ModelMemoryError, match=r"(?s)not enough memory.*dtype=") as said:
            llm.trace(PROMPT)
        assert half[0]() is None  # though the error, and its traceback, are still here
        assert said.value.__cause__ is error
        assert llm.device.type == "meta"
    assert llm(PROMPT).logits.shape[-1] == 330
    gc.collect()
