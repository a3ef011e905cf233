"""The program that runs some patches, as a cell of its own: imports, model, metric, patches.

    code(model, (clean, corrupt), metric, "heads", layers=[2], heads=[0, 3])

What the notebook has a name for is named by it; a model without one is loaded anew.
"""

import os
import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from insitu.methods.metrics import Metric, said
from insitu.widgets import main_thread

_DEMO = os.path.join("models", "demo", "checkpoint")


def code(
    model: Any, prompts: tuple[Any, Any], metric: Metric, of: str, **chosen: Sequence[int]
) -> str:
    """The text of the cell; it ends with the result, so that the cell shows it.

    Args:
        model, metric, of: as for `activation_patching`.
        prompts: the clean one and the corrupted one.
        **chosen: `layers=`, `positions=` or `heads=`.
    """
    name = _name(model)
    call = said(metric)
    imports = ["from insitu.methods import activation_patching"]
    lines = []
    if name is None:
        name, origin = "model", _origin(model._module)
        if origin:
            imports = ["import insitu", *imports]
            lines.append(f"model = insitu.LanguageModel({origin!r})")
        else:
            lines.append(f"# model: your wrapped {type(model._module).__name__}")
    if call is not None:
        imports[-1] += f", {call.partition('(')[0]}"
        lines.append(f"metric = {re.sub(r'[(]model(?=[,)])', f'({name}', call, count=1)}")
        measure: str | None = "metric"
    else:
        measure = _name(metric)
        if measure is None:
            measure = "metric"
            lines.append("# metric: your own function of logits, one number a row")
    clean, corrupt = map(_prompt, prompts)
    wanted = "".join(f", {key}={list(numbers)}" for key, numbers in chosen.items())
    call_ = (
        f"exact = activation_patching(\n    {name}, {clean},\n    {corrupt},\n"
        f"    {measure}, of={of!r}{wanted},\n)\nexact"
    )
    return "\n".join([*imports, "", *lines, call_])


def _name(thing: Any) -> str | None:
    """The variable of the notebook that holds a thing; None where none does."""
    names = main_thread.names_of_the_user().items()
    return next((name for name, it in names if it is thing and not name.startswith("_")), None)


def _prompt(prompt: Any) -> str:
    return repr(prompt.tolist() if isinstance(prompt, Tensor) else prompt)


def _origin(module: Any) -> str:
    """The name or folder a model was loaded from; empty where it is from neither."""
    name = str(getattr(getattr(module, "config", None), "_name_or_path", "") or "")
    return "demo" if name.endswith(_DEMO) else name
