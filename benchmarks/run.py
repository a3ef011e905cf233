"""Measure, and print what was found.

    python -m benchmarks.run                          # everything, as `make bench` does
    python -m benchmarks.run overhead growth --quick  # some themes, fewer rounds, small models
    python -m benchmarks.run --json figures.json
    python -m benchmarks.run --from figures.json --markdown docs/benchmarks.md

One thread, random weights, no downloads; each theme in a fresh process.
"""

import argparse
import importlib
import multiprocessing
import os
import platform
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks import report
from benchmarks.report import Report, Theme
from benchmarks.timing import Timing

THEMES = (
    "overhead",
    "bodies",
    "caching",
    "operations",
    "gradients",
    "decoding",
    "growth",
    "patching",
)
ROUNDS, ROUNDS_QUICK = 40, 4


def measured(name: str, timing: Timing, quick: bool, without: frozenset[str]) -> Theme:
    """One theme, measured here; prints it row by row."""
    import torch

    from benchmarks import libraries
    from benchmarks.comparison import measure

    warnings.simplefilter("ignore")  # of other libraries, about themselves
    torch.set_num_threads(1)
    module = importlib.import_module(f"benchmarks.{name}")
    theme = Theme(name, module.TITLE)
    here = libraries.present(without)
    with torch.set_grad_enabled(getattr(module, "GRADIENTS", False)):
        for row in module.rows(quick):
            figures, skipped = measure(row.among(here), timing)
            theme.figures += figures
            theme.skipped += skipped
    print(report.text(theme), flush=True)
    return theme


def measure_all(options: argparse.Namespace) -> Report:
    """Every theme in a process of its own."""
    from benchmarks import libraries
    from benchmarks.equality import NotEqual

    rounds = options.rounds or (ROUNDS_QUICK if options.quick else ROUNDS)
    timing = Timing(rounds, time.thread_time_ns if options.cpu else time.perf_counter_ns)
    without = frozenset(options.without)
    themes = []
    for name in options.themes or THEMES:
        fresh = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=fresh) as process:
            work = process.submit(measured, name, timing, options.quick, without)
            try:
                themes.append(work.result())
            except NotEqual as error:
                raise SystemExit(f"The gate is closed, nothing is measured: {error}") from None
    machine = f"{os.cpu_count()} processors ({platform.machine()}, {platform.system()})"
    return Report(libraries.versions(), machine, themes)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("themes", nargs="*", metavar="theme", help=", ".join(THEMES))
    parser.add_argument("--quick", action="store_true", help="few rounds, no full-size model")
    parser.add_argument("--rounds", type=int, help=f"rounds of each row ({ROUNDS})")
    parser.add_argument(
        "--cpu", action="store_true", help="time this thread's work alone: for a busy machine"
    )
    parser.add_argument("--without", nargs="*", default=[], help="packages to leave out")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--from", dest="source", type=Path, help="read them, measure nothing")
    parser.add_argument("--markdown", type=Path, help="put the tables into this file")
    options = parser.parse_args()
    if unknown := set(options.themes) - set(THEMES):
        parser.error(f"no such theme: {', '.join(sorted(unknown))}; there are {', '.join(THEMES)}")
    if options.source:
        found = Report.load(options.source)
        print("\n".join(map(report.text, found.themes)))
    else:
        found = measure_all(options)
    print("\n" + "\n".join(report.bounds(found.themes)))
    if options.json:
        found.save(options.json)
    if options.markdown:
        report.write_markdown(found, options.markdown)


if __name__ == "__main__":
    main()
