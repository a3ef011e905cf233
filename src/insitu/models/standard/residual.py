"""The residual stream around a layer's parts, [batch, pos, d_model], read and written.

with model.trace(prompt):
    before = model.layers[3].resid_pre      # what the layer is given
    middle = model.layers[3].resid_mid      # with what the attention added
    model.layers[3].resid_post *= 2         # what it gives
"""

from typing import Any

import torch

from insitu.engine.views import View
from insitu.errors import UnknownModuleError
from insitu.models.standard.standing import at, standing
from insitu.models.standard.stream import read, write


class Ends(View):
    """`resid_pre` and `resid_post` of a layer."""

    @property
    def resid_pre(self) -> torch.Tensor:
        """The stream that the layer is given, [batch, pos, d_model]."""
        return read(self._node, "input")

    @resid_pre.setter
    def resid_pre(self, value: Any) -> None:
        write(self._node, "input", value, "resid_pre")

    @property
    def resid_post(self) -> torch.Tensor:
        """The stream that the layer gives, [batch, pos, d_model]."""
        return read(self._node, "output")

    @resid_post.setter
    def resid_post(self, value: Any) -> None:
        write(self._node, "output", value, "resid_post")


class Middle(View):
    """`resid_mid` of a layer: the stream between its attention and its MLP."""

    @property
    def resid_mid(self) -> torch.Tensor:
        """What the MLP adds to, [batch, pos, d_model]: the stream with the attention's part."""
        return read(self._node, str(standing(self._node).family.mid))

    @resid_mid.setter
    def resid_mid(self, value: Any) -> None:
        write(self._node, str(standing(self._node).family.mid), value, "resid_mid")


class Parts(View):
    """`attn_out` and `mlp_out` of a layer: what its two parts add to the stream."""

    @property
    def attn_out(self) -> torch.Tensor:
        """What the attention adds to the stream, [batch, pos, d_model], after a norm of its own."""
        return read(self._node, f"{standing(self._node).family.attn_out}.output")

    @attn_out.setter
    def attn_out(self, value: Any) -> None:
        write(self._node, f"{standing(self._node).family.attn_out}.output", value, "attn_out")

    @property
    def mlp_out(self) -> torch.Tensor:
        """What the MLP adds to the stream, [batch, pos, d_model], after a norm of its own."""
        return read(self._node, f"{standing(self._node).family.mlp_out}.output")

    @mlp_out.setter
    def mlp_out(self, value: Any) -> None:
        write(self._node, f"{standing(self._node).family.mlp_out}.output", value, "mlp_out")


class Attention(View):
    """`attention` of a layer that has it deeper inside."""

    @property
    def attention(self) -> Any:
        """The module in which the heads attend."""
        return at(self._node, str(standing(self._node).family.attention))


class CrossAttention(View):
    """`cross_attention` of a decoder's layer."""

    @property
    def cross_attention(self) -> Any:
        """The module in which the heads attend to what the encoder gives."""
        return at(self._node, str(standing(self._node).family.cross_attention))


class Mlp(View):
    """`mlp` of a layer that has no module around it, or has it deeper inside."""

    @property
    def mlp(self) -> Any:
        """The MLP: a module, or the span of those that do its work."""
        where = standing(self._node).family.mlp
        if isinstance(where, str):
            return at(self._node, where)
        assert where is not None
        return Span(self._node, *where)


class Span:
    """Modules that do together what is one module in other families.

    model.layers[0].mlp.input           # what the first of them is given
    model.layers[0].mlp.output = value  # what the last of them gives
    """

    _layer: Any
    _first: str
    _last: str

    def __init__(self, layer: Any, first: str, last: str) -> None:
        self.__dict__.update(_layer=layer, _first=first, _last=last)

    def _read_input(self) -> torch.Tensor:
        """What the first module is given, [batch, pos, d_model]."""
        return read(self._layer, f"{self._first}.input")

    def _write_input(self, value: Any) -> None:
        write(self._layer, f"{self._first}.input", value, "mlp.input")

    def _read_output(self) -> torch.Tensor:
        """What the last module gives, [batch, pos, d_model]."""
        return read(self._layer, f"{self._last}.output")

    def _write_output(self, value: Any) -> None:
        write(self._layer, f"{self._last}.output", value, "mlp.output")

    input = property(_read_input, _write_input)
    output = property(_read_output, _write_output)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("input", "output"):
            raise UnknownModuleError(
                f"{self._layer._path}.mlp has nothing called {name!r} that can be written.",
                f"it stands for the modules from {self._first} to {self._last}, which this "
                "family has no module around.",
                "write its input or output.",
            )
        object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise UnknownModuleError(
            f"{self._layer._path}.mlp has nothing called {name!r}.",
            f"it stands for the modules from {self._first} to {self._last}, which this family "
            "has no module around.",
            f"read its input or output, or ask the layer: {self._layer._path}.{self._last}.",
        )

    def __repr__(self) -> str:
        return f"{self._layer._path}.mlp: {self._first} to {self._last}"
