"""What a block can do at each module of a model, as this backend runs it.

    found = reach_of(model._module, model._module.modules())
    found.backend                   # "float32 on cpu, sdpa attention"
    found.kinds                     # (Kind(label="compiled", words="…", rows=[3, 4]), …)
    reach_text(found, paths)

A module that is in no kind can be read and written at its input and output, its operations by
`.source`, and all that is in it. Looks at the modules; runs nothing.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from types import CodeType

from torch import nn

from insitu.engine.compiled import COMPILED, COMPILED_CALL
from insitu.engine.opaque import is_opaque, reached
from insitu.engine.source.chain import of
from insitu.engine.source.text import define
from insitu.engine.stopping import underneath
from insitu.errors import SourceError

PATHS_SHOWN = 4
WORDS = {
    "out of reach": "it is in a TorchScript module, or in one that runs copies on several devices: "
    "no pass can stop in it",
    "own values alone": "its input and output can be read and written, and nothing within it",
    "never called": "it only holds modules: read and write those in it",
    "no operations": "its forward has no Python text to name them from: its input and output can "
    "be read and written, and what is in it",
    "compiled": "by torch.compile: a pass that stops at it, or in it, runs it as it was written",
    "fused attention": "its kernel forms no pattern: a pass that asks for one computes it eagerly, "
    "in that module alone",
    "not loaded": "its weights are not there yet: shapes can be scanned, and a pass loads them",
    "offloaded": "its weights are brought in for each call: read values, not the weights",
}
"""Kinds, those that take most away first; what each means for a block."""
_FUSED = "ALL_ATTENTION_FUNCTIONS"
_EAGER = (None, "eager")


@dataclass(frozen=True)
class Kind:
    """Modules at which a block can do less, or does it in another way."""

    label: str
    words: str
    rows: tuple[int, ...]
    """Which modules, by their number."""


@dataclass(frozen=True)
class Reach:
    """How a model is run, and its modules that are not open to a block in all ways."""

    backend: str
    count: int
    kinds: tuple[Kind, ...]


def reach_of(root: nn.Module, modules: Iterable[nn.Module]) -> Reach:
    """What can be done at some modules of a model.

    Args:
        root: the whole model.
        modules: those that are numbered; of a part of it, for one.
    """
    within_reach = set(reached(root))
    has_text: dict[type, bool] = {}
    rows: dict[str, list[int]] = {label: [] for label in WORDS}
    numbered = list(modules)
    for row, module in enumerate(numbered):
        if module not in within_reach:
            rows["out of reach"].append(row)
            continue
        if is_opaque(module):
            rows["own values alone"].append(row)
        elif _is_never_called(module):
            rows["never called"].append(row)
        elif not _has_operations(module, has_text):
            rows["no operations"].append(row)
        for label, holds in _FURTHER.items():
            if holds(module):
                rows[label].append(row)
    kinds = tuple(Kind(it, WORDS[it], tuple(found)) for it, found in rows.items() if found)
    return Reach(_backend(root), len(numbered), kinds)


def _backend(root: nn.Module) -> str:
    """Where and in which numbers the most of a model is."""
    kinds = Counter[str]()
    for it in root.parameters():
        where = "not loaded" if it.is_meta else f"on {it.device}"
        kinds[f"{str(it.dtype).removeprefix('torch.')} {where}"] += 1
    said = [kind for kind, _ in kinds.most_common(2)]
    said += ["and others"] * (len(kinds) > 2)
    attention = getattr(getattr(root, "config", None), "_attn_implementation", None)
    return ", ".join(
        [*(said or ["no parameters"]), *([f"{attention} attention"] * bool(attention))]
    )


# What holds of one module ------------------------------------------------------------------------


def _is_never_called(module: nn.Module) -> bool:
    plain = vars(nn.Module).get("forward")
    return "forward" not in module.__dict__ and getattr(type(module), "forward", None) is plain


def _has_operations(module: nn.Module, known: dict[type, bool]) -> bool:
    """Whether the operations of its forward have names: looked up once for each class."""
    if "forward" in module.__dict__:
        return _has_source(module)
    kind = type(module)
    if kind not in known:
        known[kind] = _has_source(module)
    return known[kind]


def _has_source(module: nn.Module) -> bool:
    try:
        define(of(module).function)
    except SourceError:
        return False
    return True


def _is_compiled(module: nn.Module) -> bool:
    own = module.__dict__
    return own.get(COMPILED_CALL) is not None or hasattr(underneath(own.get("forward")), COMPILED)


def _is_fused(module: nn.Module) -> bool:
    code = getattr(getattr(type(module), "forward", None), "__code__", None)
    if not isinstance(code, CodeType) or _FUSED not in code.co_names:
        return False
    config = getattr(module, "config", None)
    return getattr(config, "_attn_implementation", None) not in _EAGER


def _is_not_loaded(module: nn.Module) -> bool:
    return any(it is not None and it.is_meta for it in module._parameters.values()) and not (
        _is_offloaded(module)
    )


def _is_offloaded(module: nn.Module) -> bool:
    hook = module.__dict__.get("_hf_hook")
    hooks = getattr(hook, "hooks", (hook,))
    return any(getattr(it, "offload", False) is True for it in hooks)


_FURTHER: dict[str, Callable[[nn.Module], bool]] = {
    "compiled": _is_compiled,
    "fused attention": _is_fused,
    "not loaded": _is_not_loaded,
    "offloaded": _is_offloaded,
}


# Twins -------------------------------------------------------------------------------------------


def reach_text(found: Reach, paths: Sequence[str]) -> str:
    """A line for the backend, and one for each kind with its first modules."""
    lines = [f"What a block can reach: {found.backend}"]
    lines += [
        f"  {it.label}, {_counted(it)}: {_listed(it, paths)}\n    {it.words}" for it in found.kinds
    ]
    return "\n".join([*lines, f"  {_rest(found)}"])


def reach_html(found: Reach, paths: Sequence[str]) -> str:
    """The same as a table."""
    rows = [
        f'<tr><th scope="row">{it.label}</th><td>{_counted(it)}</td>'
        f"<td><code>{escape(_listed(it, paths))}</code></td><td>{it.words}</td></tr>"
        for it in found.kinds
    ]
    head = f"<caption>What a block can reach: {escape(found.backend)}</caption>"
    table = f"<table>{head}<tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="wide">{table}<p class="soft">{_rest(found)}</p></div>'


def _rest(found: Reach) -> str:
    """How many modules are open in all ways."""
    limited = {row for it in found.kinds for row in it.rows}
    return (
        f"{found.count - len(limited):,} of {found.count:,} modules: input, output, operations and "
        "all that is in them"
    )


def _counted(kind: Kind) -> str:
    return f"{len(kind.rows):,} module{'s' * (len(kind.rows) != 1)}"


def _listed(kind: Kind, paths: Sequence[str]) -> str:
    shown = [paths[row] or "model" for row in kind.rows[:PATHS_SHOWN]]
    return ", ".join([*shown, *(["…"] * (len(kind.rows) > PATHS_SHOWN))])
