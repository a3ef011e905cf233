"""A network of which nothing inside a block is kept for the backward: it runs again then.

net = Checkpointed(reentrant=False)     # rows of width 4 in, of width 2 out
"""

from torch import nn
from torch.utils.checkpoint import checkpoint

WIDTH = 4


class Checkpointed(nn.Module):
    def __init__(self, reentrant=False):
        super().__init__()
        self.reentrant = reentrant
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(3)
        )
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x)
