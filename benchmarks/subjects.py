"""The models that are measured: random weights, made anew from one seed, no downloads.

subject = gpt2()        # 12 layers of width 48
subject.forward()
subject.twin()          # the same weights in other modules, for a library that changes them
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.timing import Way

VOCABULARY = 200


@dataclass(frozen=True)
class Subject:
    """A model, its input, and the layers that are read."""

    name: str
    module: Any
    layers: Sequence[nn.Module]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None
    prefix: str = ""
    """Where the layers are: `transformer.h`, or the root itself."""

    def forward(self) -> Any:
        """The bare forward."""
        return self.module(*self.args, **(self.kwargs or {}))

    def bare(self) -> Way:
        """The bare forward, as what others are compared with."""
        args, kwargs = self.args, self.kwargs or {}

        def run() -> None:
            self.module(*args, **kwargs)

        return Way(run, self.module)

    def twin(self) -> "Subject":
        """The same weights in other modules."""
        shared = {id(t): t for t in (*self.module.parameters(), *self.module.buffers())}
        module = copy.deepcopy(self.module, shared)
        found = module.get_submodule(self.prefix)
        return replace(self, module=module, layers=[found[i] for i in range(len(self.layers))])

    def wrapped_layers(self, model: Any) -> list[Any]:
        """The layers as a wrapper of the module names them."""
        for name in filter(None, self.prefix.split(".")):
            model = getattr(model, name)
        return [model[i] for i in range(len(self.layers))]


def mlp(depth: int = 12) -> Subject:
    """Linear layers of width 32, one row."""
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(32, 32) for _ in range(depth)))
    return Subject(f"{depth}-layer MLP", net, list(net), (torch.rand(1, 32),))


def gpt2(
    name: str = "GPT-2 shape, narrow",
    *,
    layers: int = 12,
    width: int = 48,
    ids: tuple[int, int] = (1, 8),
    caching: bool = False,
) -> Subject:
    """GPT-2 with other sizes: `ids` is rows and tokens, `caching` the key-value cache."""
    torch.manual_seed(0)
    full = width == 768
    config = GPT2Config(
        n_layer=layers,
        n_embd=width,
        n_head=12 if full else 4,
        vocab_size=50257 if full else VOCABULARY,
        n_positions=128,
        use_cache=caching,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = GPT2LMHeadModel(config).eval()
    model.generation_config.eos_token_id = None  # every decode is as long as it was asked to be
    tokens = torch.randint(1, config.vocab_size, ids)
    return Subject(
        name, model, list(model.transformer.h), kwargs={"input_ids": tokens}, prefix="transformer.h"
    )


def with_rows(subject: Subject, rows: int) -> Subject:
    """The same model on another number of rows."""
    torch.manual_seed(1)
    if not subject.prefix:
        return replace(subject, args=(torch.rand(rows, 32),))
    tokens = torch.randint(1, subject.module.config.vocab_size, (rows, 8))
    return replace(subject, kwargs={"input_ids": tokens})


class Beside(nn.Module):
    """Layers that run, beside others that do not."""

    def __init__(self, layers: nn.Module, others: int) -> None:
        super().__init__()
        self.layers = layers
        self.others = nn.ModuleList(nn.Identity() for _ in range(others))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the layers."""
        value: torch.Tensor = self.layers(x)
        return value


def beside(others: int) -> Subject:
    """The 12-layer MLP in a model of that many modules more."""
    inner = mlp()
    return Subject(
        f"{inner.name} among {others:,} modules",
        Beside(inner.module, others),
        inner.layers,
        inner.args,
        prefix="layers",
    )
