"""`%%trace … --cache SITES`: which modules are kept.

wanted("transformer.h.*, lm_head", names)       # ["transformer.h.*", "lm_head"]
wanted("model.transformer.h[2]", names)         # [the wrapped module]
"""

from collections.abc import Mapping
from typing import Any

from insitu.notebook.magics.modules import bare
from insitu.notebook.magics.names import node_of


def wanted(text: str, names: Mapping[str, Any]) -> list[Any] | None:
    """Modules, paths and patterns as `tracer.cache` takes them; None for all."""
    parts = [part.strip() for part in bare(text).split(",") if part.strip()]
    if parts in (["all"], ["**"]):
        return None
    return [node_of(part, names) or part for part in parts]
