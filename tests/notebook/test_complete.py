import subprocess
import sys
import time

import pytest
from IPython.core.completer import provisionalcompleter

from insitu.notebook.complete import candidates
from insitu.notebook.request import OPTIONS, VIEWS

OWN = ["ln_1", "attn", "ln_2", "mlp"]
STANDARD = ["attention", "attn_out", "mlp_out", "resid_mid", "resid_post", "resid_pre"]
BLOCK = [*OWN, *STANDARD, "output", "input", "inputs", "skip", "source"]


@pytest.fixture
def names(llm):
    return {"model": llm, "block": llm.transformer.h[0], "models": [llm], "number": 3}


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ("model.transformer.h[0].", BLOCK),
        ("logits = f(model.transformer.h[-1].", BLOCK),
        ("block.", BLOCK),
        ("model.transformer.h[0].at", ["attn", "attention", "attn_out"]),
        ("model.transformer.h[0].in", ["input", "inputs"]),
        ("model.transformer.h[0].attn.source.self_c_p", ["self_c_proj_0"]),
        ("x = block.attn.source.attention_interface_0.s", ["skip", "source"]),
        ("block.attn.source.attention_interface_0.source.sdpa", []),
        ("block.attn.source.no_such_0.", []),
        ("model.transformer.h[", ["0", "1", "2", "3"]),
        ("model.transformer.h[3", ["3"]),
        ("model.transformer.h.", []),  # a list of modules runs nothing itself
        ("model.generator.", ["streamer", "output", "input", "inputs", "skip", "source"]),
        ("%%trace model 'a' --g", ["--generate", "--grad"]),
        ("%%trace model 'a' -", list(OPTIONS)),
        ("%%trace model 'a' --view ", list(VIEWS)),
        ("%%trace model 'a' --view=g", ["generation"]),
        ("%%trace model 'a' --view lens --ti", ["--time"]),
        ("%lens model 'a' --t", ["--target", "--tuned"]),
        ("grid = %lens 'a' --ta", ["--target"]),
        ("%patch a b --answer ' x' --of re", ["resid_pre", "resid_mid", "resid_post"]),
        ("%run u", ["until"]),
        ("%run open model --", ["--generate"]),
        ("%run until model.transformer.h[0].", BLOCK),
        ("%source model.transformer.h[0].at", ["attn", "attention", "attn_out"]),
    ],
)
def test_what_a_block_can_say_is_offered(names, before, words):
    assert candidates(before, names)[1] == words


def test_the_model_itself_offers_what_starts_a_pass_too(names):
    words = candidates("model.", names)[1]
    assert {"transformer", "lm_head", "output", "trace", "generate", "open"} <= set(words)
    assert not {"parameters", "state_dict", "register_forward_hook"} & set(words)


@pytest.mark.parametrize(
    "before",
    [
        "number.",
        "models[0].",
        "nothing.",
        "model.transformer.h[9].",
        "model.no_such.",
        "model.transformer.h[0].output.",
        "other.model.",
        "f().model.",
        "%run ",
        "%run my_scr",
        "%time --",
        "model.transformer.h[i].",
        "x",
        "",
    ],
)
def test_elsewhere_others_complete(names, before):
    assert candidates(before, names) is None


def completions(shell, text):
    with provisionalcompleter():
        return [c.text for c in shell.Completer.completions(text, len(text))]


def test_ipython_offers_these_and_nothing_else(shell, llm):
    shell.user_ns["model"] = llm
    assert completions(shell, "model.transformer.h[0].") == BLOCK
    assert completions(shell, "%%trace model 'a'\nx = model.transformer.h[0].mlp.c_f") == ["c_fc"]
    assert completions(shell, "%%trace model 'a' --ti") == ["--time"]


def test_a_completion_takes_less_than_ten_milliseconds(shell, llm):
    shell.user_ns["model"] = llm
    took_s = []
    for _ in range(5):
        began = time.thread_time()
        completions(shell, "model.transformer.h[0].")
        took_s.append(time.thread_time() - began)
    assert min(took_s) < 0.01


def test_ipythons_own_completion_loads_after_a_trace():
    code = (
        "import torch, insitu\n"
        "with insitu.NNsight(torch.nn.Linear(1, 1)).trace(torch.ones(1, 1)): pass\n"
        "import IPython.core.guarded_eval"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
