"""The tuned lens: a small learned map for each layer reads what the plain lens does not.

lens = train_tuned_lens(model, texts, steps=200)
lens(model, "The Eiffel Tower is in the city of", target=" Paris").plot()
lens.training_loss.plot()                      # the loss falling, layer by layer
lens.save("lens.pt")
"""

from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from insitu.methods.axes import Axis
from insitu.methods.logit_lens import lens_of
from insitu.methods.readout import read_out
from insitu.methods.result import Result
from insitu.models.language import LanguageModel

SOURCE = (
    "Belrose, Furman, Smith, Halawi, Ostrovsky, McKinney, Biderman, Steinhardt, "
    '"Eliciting Latent Predictions from Transformers with the Tuned Lens" (2023)'
)


class TunedLens(nn.Module):
    """An affine map for each layer but the last, to be read by the model's own final norm.

        lens = TunedLens.load("lens.pt")
        lens(model, prompt, target=" Paris")            # a result, as of logit_lens

    Untrained it is the logit lens: each map adds nothing.
    """

    def __init__(self, n_layers: int, d_model: int) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(d_model, d_model) for _ in range(n_layers - 1))
        for number in self.parameters():
            nn.init.zeros_(number)
        self.training_losses = torch.zeros(0, n_layers - 1)

    def translated(self, layer: int, stream: Tensor) -> Tensor:
        """A layer's residual stream as the last layer would have it, `[…, d_model]`."""
        if layer == len(self.maps):
            return stream
        moved: Tensor = self.maps[layer](stream.float()).to(stream.dtype)
        return stream + moved

    def forward(
        self, model: LanguageModel, prompt: Any, *, target: str | int | None = None, top: int = 5
    ) -> Result:
        """Read every layer of a prompt's run by this lens; arguments and result as `logit_lens`."""

        def read(layer: int, stream: Tensor) -> Tensor:
            return read_out(model, self.translated(layer, stream))

        return lens_of(model, prompt, read, target, top, title="Tuned lens", source=SOURCE)

    @property
    def training_loss(self) -> Result:
        """KL from the final prediction while it was trained, nats, `[step, layer]`."""
        axes = [
            Axis(n, range(s))
            for n, s in zip(("step", "layer"), self.training_losses.shape, strict=True)
        ]
        what = "KL from the final prediction"
        return Result(self.training_losses, tuple(axes), what, "nats", "Tuned lens", SOURCE)

    def save(self, file: str | PathLike[str]) -> None:
        """Write the maps to a file that `TunedLens.load` reads: `lens.save("lens.pt")`."""
        torch.save({**self.state_dict(), "losses": self.training_losses}, file)

    @classmethod
    def load(cls, file: str | PathLike[str]) -> "TunedLens":
        """Read what `save` has written."""
        kept = torch.load(file, weights_only=True)
        losses = kept.pop("losses")
        lens = cls(losses.shape[1] + 1, kept["maps.0.bias"].shape[0])
        lens.load_state_dict(kept)
        lens.training_losses = losses
        return lens
