"""Families x features: runs the matrix of tests and writes it down as docs/families.md.

python tools/family_matrix.py            # a minute; exit 1 if anything fails
python tools/family_matrix.py --check    # only whether the table lists what the tests do; at once
"""

import argparse
import datetime
import platform
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from families import FAMILIES, FEATURES  # noqa: E402

TESTS, PAGE = ROOT / "tests/models/test_families.py", ROOT / "docs/families.md"
YES, NO, NOT_POSSIBLE = "✓", "✗", "–"
_COLUMN = {feature.test: name for name, feature in FEATURES.items()}
_CASE = re.compile(r"(\w+)\[(\w+)(?:-(.+))?\]")

HEAD = """# Families of models

Every cell is a test on a tiny random model of that family (2 layers, width 32), built from its
configuration: what Insitu gives is compared with what plain torch hooks, autograd, `transformers`
or an own computation give. Written by `make families`; the tests are tests/models/test_families.py.

"""

REST = """
{yes} equal, {no} not equal, {not_possible} not possible (see below). Under `source` stand the
implementations of attention it holds for.

## What is compared
{features}

## What is different, or not possible
{notes}

## Any other module
tests/models/test_kinds_of_modules.py puts the same questions to CNNs with in-place modules,
recurrent layers and cells called once a position, mixtures of experts, state-space models, shared
weights, modules that give dicts, tuples or dataclasses, checkpointed and parametrized ones, graph
modules of torch.fx, and `DistributedDataParallel`. What is particular:

- **`torch.compile`**: a pass that stops in a compiled module runs it, and those around it, as they
  were written; all else stays compiled, and so is everything after the pass. Numbers may differ in
  the last digits between the two.
- **TorchScript**: a scripted or traced module has its own input and output, which can be read and
  written; what is in it is never called from Python, and asking for it says so.
- **`DataParallel`** on one device, or none, is looked into. On several it calls copies of its
  module in threads: its own output can be read, what is within cannot, and asking for it says so.
- **Activation checkpoints**: a traced pass runs what comes in a checkpoint without it, since the
  backward would run it again without the block's edits. It takes the memory that this takes.
- **Experts** that get no token do not run: reading one says which did. Shapes that depend on values
  cannot be scanned.
- **torch's own fast path** (`nn.TransformerEncoderLayer` in evaluation mode, without gradients)
  calls none of its modules: they never run, and reading one says so. With gradients on they do.
- **Time-major modules** (`nn.LSTM(…)` over `[time, batch, feature]`): `NNsight(net, batch_dim=1)`
  joins invokes there, and each reads its rows there; `batch_dim={"hx": 1}` says it of single
  arguments, and `batch=function` joins what cannot be put one below the other, such as ragged ids.
  Without it they are joined in the first dimension, and a warning says that the module mixes them.
- **One module at several places of a list** (`nn.ModuleList([block] * 3)`, an activation used twice
  in a `Sequential`): place *k* is its *k*-th call. Under several names elsewhere it is one module,
  whose further calls are steps: `tracer.iter`. A cache keeps all calls under each path.
"""


def outcomes() -> dict[tuple[str, str], dict[str, str]]:
    """By family and feature: what became of each of its tests, by implementation of attention."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        run = [sys.executable, "-m", "pytest", "-q", str(TESTS), f"--junitxml={report}"]
        subprocess.run(run, cwd=ROOT, check=False)
        cases = list(ElementTree.parse(report).iter("testcase"))
    found: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for case in cases:
        parts = _CASE.fullmatch(case.get("name", ""))
        if parts is None or parts[1] not in _COLUMN:
            continue
        kinds = {part.tag for part in case}
        told = NO if kinds & {"failure", "error"} else NOT_POSSIBLE if "skipped" in kinds else YES
        found[parts[2], _COLUMN[parts[1]]][parts[3] or ""] = told
    return found


def cell(told: dict[str, str]) -> str:
    """One mark for a family's tests of one feature."""
    if not told:
        return NO
    marks = set(told.values())
    mark = NO if NO in marks else YES if YES in marks else NOT_POSSIBLE
    kinds = [kind for kind, one in told.items() if kind in ("eager", "sdpa") and one == mark]
    return f"{mark} {', '.join(kinds)}" if kinds else mark


def table(cells: dict[tuple[str, str], str]) -> str:
    """The matrix, a row per family."""
    rows = [f"| family | {' | '.join(FEATURES)} |", "|---" * (len(FEATURES) + 1) + "|"]
    for name in FAMILIES:
        rows.append(f"| {name} | {' | '.join(cells[name, feature] for feature in FEATURES)} |")
    return "\n".join(rows)


def page(cells: dict[tuple[str, str], str]) -> str:
    """The whole document."""
    about = f"{datetime.date.today()}: insitu {version('insitu')}, torch {version('torch')}, "
    about += f"transformers {version('transformers')}, Python {platform.python_version()}.\n\n"
    features = "\n".join(f"- **{name}**: {it.compared}." for name, it in FEATURES.items())
    notes = "\n".join(
        f"- **{family.name}**: {note}" for family in FAMILIES.values() for note in family.notes
    )
    rest = REST.format(yes=YES, no=NO, not_possible=NOT_POSSIBLE, features=features, notes=notes)
    return HEAD + about + table(cells) + "\n" + rest


def stale(text: str) -> list[str]:
    """What a page says otherwise than the tests: features, families, notes, tests that are none."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    columns, families = (rows[0][1:], [row[0] for row in rows[1:]]) if rows else ([], [])
    written = TESTS.read_text()
    wrong = [] if columns == list(FEATURES) else [f"features: {columns}"]
    wrong += [] if families == list(FAMILIES) else [f"families: {families}"]
    wrong += [it.test for it in FEATURES.values() if f"def {it.test}(" not in written]
    lines = [it.compared for it in FEATURES.values()]
    lines += [note for family in FAMILIES.values() for note in family.notes]
    return wrong + [line for line in lines if line not in text]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        wrong = stale(PAGE.read_text() if PAGE.exists() else "")
        print("\n".join(["docs/families.md is not what the tests are: make families", *wrong][:9])
              if wrong else "docs/families.md lists what the tests do")  # fmt: skip
        return bool(wrong)
    found = outcomes()
    cells = {(name, it): cell(found[name, it]) for name in FAMILIES for it in FEATURES}
    PAGE.write_text(page(cells))
    failed = [f"{name}: {it}" for (name, it), mark in cells.items() if mark.startswith(NO)]
    print(
        "\n".join(failed) or f"{PAGE.relative_to(ROOT)}: {len(cells)} cells, all as they should be"
    )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
