"""One small widget of every kind, each made of data alone."""

import torch
from torch import nn

from insitu import NNsight
from insitu.methods.axes import Axis
from insitu.methods.result import Result
from insitu.twins.ledger import Ledger
from insitu.widgets import (
    AttentionView,
    CacheInspector,
    DenoisingView,
    GenerationView,
    JobDock,
    LensGrid,
    ModuleTree,
    PatchMap,
    RemoteLog,
    RunLedger,
    SourceBrowser,
)
from insitu.widgets.lint_fixes import LintFixes

FINDING = {"rule": "a", "line": 1, "what": "b", "why": "c", "next": "d", "change": [], "fixed": ""}


def small_net():
    inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    return nn.Sequential(nn.Linear(2, 2), inner, nn.Linear(2, 2))


def small_lens():
    axes = Axis("layer", range(3)), Axis("pos", ["The", " city", "\n"])
    values = torch.arange(9.0).view(3, 3) / 9
    ranks = Axis("rank", range(2))
    chances = torch.rand(3, 3, 2, generator=torch.Generator().manual_seed(0))
    further = {
        "kl": Result(1 - values, axes, "KL from the final prediction", "nats"),
        "top": Result(chances, (*axes, ranks), "probability", texts=["a", "b"] * 9),
    }
    return Result(values, axes, "probability", title="Logit lens", limits=(0, 1),
                  texts=list("abcdefghi"), further=further)  # fmt: skip


def small_estimate():
    return Result(torch.rand(2, 3), (Axis("layer", range(2)), Axis("pos", "abc")), "share")


def small_ledger():
    ledger = Ledger()
    ledger.add("%%trace model 'a'", prompt="a", top=((" x", 0.75),))
    return ledger


WIDGETS = {
    "module_tree": lambda: ModuleTree(NNsight(small_net())),
    "lens_grid": lambda: LensGrid(small_lens()),
    "attention_view": lambda: AttentionView.of(torch.rand(2, 3, 3), tokens="abc"),
    "source_browser": lambda: SourceBrowser(NNsight(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))),
    "patch_map": lambda: PatchMap(small_estimate(), lambda layer, places: torch.ones(len(places))),
    "cache_inspector": lambda: CacheInspector({"x": torch.rand(3, 4)}),
    "generation_view": lambda: GenerationView.of(["a", "b"], entropy=[0.2, 1.4]),
    "denoising_view": lambda: DenoisingView.of([torch.rand(3, 4, 4)]),
    "run_ledger": lambda: RunLedger(small_ledger()),
    "lint_fixes": lambda: LintFixes([FINDING], "x = 1"),
    "remote_log": RemoteLog,
    "job_dock": JobDock,
}
