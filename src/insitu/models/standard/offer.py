"""What a language model does with a standard name when it is first asked for.

    names = StandardNames()
    names.offered(model.layers[3], "resid_mid")     # true: the name is known from here on

Until then nothing is looked up, and nothing of this folder is imported but this file.
"""

import importlib
from typing import Any

AT_ROOT = frozenset({
    "layers", "encoder_layers", "decoder_layers", "embed", "final_norm", "unembed", "dims",
})  # fmt: skip
AT_LAYER = frozenset({
    "attention", "cross_attention", "mlp", "resid_pre", "resid_mid", "resid_post", "attn_out",
    "mlp_out",
})  # fmt: skip
AT_ATTENTION = frozenset({"q", "k", "v", "z", "scores", "pattern"})
AT_MLP = frozenset({"router"})
NAMES = AT_ROOT | AT_LAYER | AT_ATTENTION | AT_MLP


class StandardNames:
    """The standard names of a language model, as its wrapper asks for them."""

    def offered(self, node: Any, name: str) -> bool:
        """Whether a name has become known, because the model's standard names were looked up.

        Raises:
            UnknownModuleError: it is a standard name, and this model has nothing that is called so.
        """
        if name not in NAMES:
            return False
        answer: bool = _resolve().offered(node, name)
        return answer

    def listed(self, node: Any) -> list[str]:
        """The standard names at a module, also before they have been looked up."""
        found: list[str] = _resolve().listed(node)
        return found


def _resolve() -> Any:
    return importlib.import_module("insitu.models.standard.resolve")
