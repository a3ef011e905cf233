"""The libraries: which of them are here, and each on a twin of the model.

nnsight leaves a `forward` on every module and TransformerLens puts modules of its own in their
place, so each has the same weights in modules of its own. They are imported when first asked for.
"""

import importlib.metadata
import importlib.util
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

import insitu
from benchmarks.comparison import Task, Tasks
from benchmarks.subjects import VOCABULARY, Subject

HOOKS, INSITU, NNSIGHT = "raw hooks", "Insitu", "nnsight"
LENS, PYVENE = "TransformerLens", "pyvene"
EVERYONE = (HOOKS, INSITU, NNSIGHT, LENS, PYVENE)
PACKAGES = {NNSIGHT: "nnsight", LENS: "transformer-lens", PYVENE: "pyvene"}

TOLERANCE = 1e-5
"""TransformerLens computes attention by its own code, and rounds otherwise."""


def present(without: frozenset[str] = frozenset()) -> list[str]:
    """The libraries that are installed, without those that are not wanted."""
    return [
        who
        for who in EVERYONE
        if PACKAGES.get(who) not in without
        and (who not in PACKAGES or importlib.util.find_spec(PACKAGES[who].replace("-", "_")))
    ]


def versions() -> dict[str, str]:
    """What it was measured with."""
    packages = ("torch", "transformers", "greenlet", *PACKAGES.values())
    found = {"Python": platform.python_version(), "Insitu": insitu.__version__}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def both(make: Callable[..., Task], *given: Any) -> Tasks:
    """The same by Insitu and nnsight, whose blocks are written alike."""
    return {who: lambda who=who: make(who, *given) for who in (INSITU, NNSIGHT)}


def plain(who: str, subject: Subject) -> Any:
    """Any module wrapped by Insitu or nnsight."""
    return wrapper(who)((subject if who == INSITU else subject.twin()).module)


def wrapper(who: str) -> Any:
    """`NNsight`, which wraps any module."""
    return insitu.NNsight if who == INSITU else _nnsight().NNsight


def language(who: str, subject: Subject) -> Any:
    """A language model wrapped by Insitu or nnsight: it generates and joins prompts."""
    if who == INSITU:
        return insitu.LanguageModel(subject.module)
    return _nnsight().LanguageModel(subject.twin().module, tokenizer=_tokenizer())


def keep(who: str) -> Any:
    """`save`, which nnsight's blocks need; in place in Insitu it gives its value back.

    Not the method: both mount `.save()`, and Insitu's, on the types themselves, is found first.
    """
    return insitu.save if who == INSITU else _nnsight().save


def lens(subject: Subject) -> Any:
    """A TransformerBridge. It runs attention eagerly: compare it with `eager(subject)`."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    module = subject.twin().module
    bridge = build_bridge_from_module(module, type(module).__name__, hf_config=module.config)
    return bridge.eval()


def eager(subject: Subject) -> Subject:
    """A twin whose attention is written out instead of fused."""
    twin = subject.twin()
    twin.module.set_attn_implementation("eager")
    return twin


def pyvene(subject: Subject, interventions: list[dict[str, Any]]) -> Any:
    """An IntervenableModel around a twin."""
    import pyvene as library

    return library.IntervenableModel(interventions, model=subject.twin().module)


@contextmanager
def nnsight_backward() -> Iterator[None]:
    """`Tensor.backward` as nnsight patches it, for nnsight's own runs alone."""
    import nnsight.intervention.backward as patches

    torch.Tensor.backward = patches._backward
    try:
        yield
    finally:
        torch.Tensor.backward = patches._original_backward


def _nnsight() -> Any:
    import nnsight
    import nnsight.intervention.backward as patches

    torch.Tensor.backward = patches._original_backward
    return nnsight


def _tokenizer() -> Any:
    """nnsight asks for one; the prompts here are token ids."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = models.WordLevel({str(number): number for number in range(VOCABULARY)}, unk_token="0")
    special = {f"{name}_token": "0" for name in ("pad", "bos", "eos")}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), **special)
