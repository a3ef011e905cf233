"""Models small enough to trace in milliseconds, and the guard that every trace cleans up."""

import gc
import itertools
import os
import signal
import sys
import time
import weakref
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from leftovers import ours_on, unparked
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from traitlets.config import Config
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from insitu import DiffusionModel, LanguageModel, NNsight
from insitu.engine import checkpoints, running, switch

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))

SETTLED_EVERY = 20
ended = itertools.count(1)

# A shell starts what it puts into the background with Ctrl-C switched off.
signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other

TEXT = (
    "The Eiffel Tower is in the city of Paris. The Colosseum is in the city of Rome. "
    "Buckingham Palace is in the city of London. Once upon a time a model was read in its place. "
)


@pytest.fixture(scope="session")
def one_shell():
    """IPython's shell, of which a process has one."""
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    yield InteractiveShell.instance(config=config)
    InteractiveShell.clear_instance()


@pytest.fixture
def bare_shell(one_shell):
    """A shell without the extension."""
    yield one_shell
    one_shell.reset(new_session=False)


@pytest.fixture
def net():
    torch.manual_seed(0)
    layers = {"layer1": torch.nn.Linear(5, 10), "layer2": torch.nn.Linear(10, 2)}
    return torch.nn.Sequential(torch.nn.modules.container.OrderedDict(layers))


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.rand(1, 5)


def train_tokenizer():
    tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 5, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>", pad_token="<|end|>"
    )


@pytest.fixture(scope="session")
def tiny_gpt2():
    """A random GPT-2 of 4 layers and width 32, and a tokenizer: `(model, tokenizer)`."""
    tokenizer = train_tokenizer()
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=4, n_embd=32, n_head=4, vocab_size=len(tokenizer), n_positions=64,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval().requires_grad_(False)
    for weight in model.parameters():  # spread them, so that a change inside shows at the end
        weight.mul_(4 if weight.dim() > 1 else 1)
    model.generation_config.update(eos_token_id=None, pad_token_id=0, do_sample=False)
    return model, tokenizer


@pytest.fixture
def llm(tiny_gpt2):
    model, tokenizer = tiny_gpt2
    return LanguageModel(model, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def pipe():
    """A random Stable Diffusion of the smallest kind, of diffusers' own."""
    import tiny_diffusion  # and diffusers with it, which most tests do without

    return tiny_diffusion.stable_diffusion()


@pytest.fixture
def sd(pipe):
    return DiffusionModel(pipe)


@pytest.fixture(scope="session")
def team_server():
    """A server of the demo model, whose blocks run in a jail: its address and a key."""
    import demo_server

    return demo_server.shared()


def settle():
    """Let what is there be no work for the guard, which looks at what tests make.

    A heap that grew through 1,700 tests took two thirds of their time: it was searched after each.
    """
    gc.collect()
    gc.freeze()


def pytest_collection_finish():
    settle()


def assert_nothing_is_left(roots, unparked_before):
    for root in roots:
        for module in root.modules():
            assert not ours_on(module), f"left on {type(module).__name__}"
    for _ in range(50):
        if not unparked() - unparked_before:
            break
        gc.collect()  # a traceback may keep a run in a cycle, and a thread takes its time to end
        time.sleep(0.02)
    assert not unparked() - unparked_before
    assert switch.parked() <= switch.PARKED_MAX
    assert running.active.get() is None
    assert running.opened == []
    assert not checkpoints._open
    assert torch.utils.checkpoint.CheckpointFunction.__module__ == "torch.utils.checkpoint"
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert not torch._C._is_any_autocast_enabled()
    assert torch._C._len_torch_function_stack() == torch._C._len_torch_dispatch_stack() == 0


@pytest.fixture(autouse=True)
def left_nothing(monkeypatch):
    """After every test: no hook, no forward, no greenlet but the parked ones, modes as before."""
    roots, unparked_before = weakref.WeakSet(), unparked()
    interrupted_by = signal.getsignal(signal.SIGINT)
    wrap = NNsight.__init__

    def note(self, module, **further):
        wrap(self, module, **further)
        roots.add(module)

    monkeypatch.setattr(NNsight, "__init__", note)
    yield
    try:
        assert_nothing_is_left(roots, unparked_before)
        assert signal.getsignal(signal.SIGINT) is interrupted_by
        if next(ended) % SETTLED_EVERY == 0:
            settle()
    finally:  # one test's failure is not the next one's
        running.active.set(None)
        running.opened.clear()
        signal.signal(signal.SIGINT, interrupted_by)
