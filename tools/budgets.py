"""Every budget of the notebook's views beside what is measured here, as a table.

python tools/budgets.py                 # print it; exit 1 where one is not kept
python tools/budgets.py --write         # put it into docs/widgets.md too
python tools/budgets.py tree cache      # some

Views are opened in a bare chromium page by what gallery.py does: `painted` is from the call of the
view's code until the browser has drawn it, the median of several pages. Bytes are those of the
messages, JSON and buffers.
"""

import argparse
import datetime
import gzip
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
import torch
from gallery import Host, browser, deliver, shown
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell
from nbclient import NotebookClient
from torch import nn

import insitu
from insitu import LanguageModel, NNsight
from insitu.widgets import (
    CacheInspector,
    GenerationView,
    JobEvent,
    ModuleTree,
    RemoteLog,
    watch_generation,
)

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/widgets.md"
BEGIN, END = "<!-- budgets: written by `make budgets` -->", "<!-- end of budgets -->"
PAGES = 5
KB = 1000.0

IN_SIGHT = """async ([selector, pattern]) => {
  const there = () => [...document.querySelectorAll(selector)]
    .some(it => new RegExp(pattern).test(it.textContent));
  while (!there()) await new Promise(done => requestAnimationFrame(done));
  return performance.now();
}"""
PAUSES = """() => { window.longest = 0; let last = performance.now();
  const look = now => { window.longest = Math.max(window.longest, now - last); last = now;
                        requestAnimationFrame(look); };
  requestAnimationFrame(now => { last = now; look(now); }); }"""


@dataclass(frozen=True)
class Row:
    """One budget: what it is of, the most it may be (None: no budget), and what it is."""

    of: str
    limit: float | None
    measured: float
    unit: str
    note: str = ""
    is_least: bool = False
    """Whether the budget is the least it may be."""

    @property
    def is_kept(self) -> bool:
        """Whether it is within its budget."""
        if self.limit is None:
            return True
        return self.measured >= self.limit if self.is_least else self.measured <= self.limit


# Trees --------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Eight modules and itself, about what a transformer's block has."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("norm_1", "q", "k", "v", "o", "norm_2", "up", "down", "act"):
            self.add_module(name, nn.Identity())


def model_of(count: int) -> NNsight:
    """A model of so many modules, ten a block."""
    return NNsight(nn.Sequential(nn.ModuleList(Block() for _ in range((count - 2) // 10))))


def tree() -> Iterator[Row]:
    """The first view of large trees."""
    for count, limit in ((10_000, 150), (100_000, None)):
        model, sent = model_of(count), 0
        built, whole = [], []
        with browser() as chromium:
            for _ in range(PAGES):
                began = time.perf_counter()
                view = ModuleTree(model)
                built.append((time.perf_counter() - began) * 1000)
                with shown(chromium, view) as (page, host):
                    sent = host.sent
                    whole.append(built[-1] + page.opened_ms)
                view.close()
        yield Row(f"tree of {count:,} modules, painted", limit, statistics.median(whole), "ms",
                  f"{statistics.median(built):.0f} ms to gather them, the rest in the page; "
                  f"{sent / KB:,.0f} kB sent")  # fmt: skip


# Caches -------------------------------------------------------------------------------------------

ENTRIES, ENTRY_BYTES = 10_000, 64 * 2**20


def cache() -> Iterator[Row]:
    """A cache of 640 GB, all of it in one piece of memory: what is shown cannot tell."""
    values = torch.randn(4096, 4096)
    assert values.nbytes == ENTRY_BYTES
    tensors = {f"transformer.h.{n}.mlp.output": values.view(1, 4096, 4096) for n in range(ENTRIES)}
    opened, whole, sent = [], [], 0
    with browser() as chromium:
        for _ in range(PAGES):
            began = time.perf_counter()
            view = CacheInspector(tensors)
            built_ms = (time.perf_counter() - began) * 1000
            with shown(chromium, view, until="[role=option]") as (page, host):
                sent = host.sent
                opened.append(built_ms + page.opened_ms)
                page.evaluate(IN_SIGHT, ["[role=option]:nth-child(11)", "none"])
                whole.append((time.perf_counter() - began) * 1000)
            view.close()
    what = f"cache of {ENTRIES:,} tensors of 64 MiB"
    yield Row(f"{what}, opened", 200, statistics.median(opened), "ms")
    yield Row(f"{what}, sent for the first view", 50, sent / KB, "kB")
    yield Row(f"{what}, numbers of all rows in sight", None, statistics.median(whole), "ms")


# Bundles ------------------------------------------------------------------------------------------


def bundles() -> Iterator[Row]:
    """The front ends, as they travel."""
    folder = ROOT / "src/insitu/widgets/bundles"
    sizes = {it.stem: len(gzip.compress(it.read_bytes(), 9)) / KB for it in folder.glob("*.js")}
    for name, size in sorted(sizes.items(), key=lambda it: -it[1]):
        yield Row(f"bundle of {name}, gzipped", 300, size, "kB")


# Logs ---------------------------------------------------------------------------------------------

LINES_A_SECOND, FED_S = 12_000, 3.0
FLOOD = 400_000


def log() -> Iterator[Row]:
    """A job that says ten thousand lines a second, and one that floods."""
    with browser() as chromium:
        view = RemoteLog(title="fast")
        with shown(chromium, view) as (page, host):
            page.evaluate(PAUSES)
            began = time.monotonic()
            feeder = threading.Thread(target=_feed, args=(view, began))
            feeder.start()
            while feeder.is_alive():
                deliver(page, host)
                time.sleep(0.02)
            rate = view.count / (time.monotonic() - began)
            time.sleep(0.2)
            deliver(page, host)
            page.evaluate(IN_SIGHT, [".insitu-view", f"{view.count:,} lines"])
            longest = page.evaluate("window.longest")
        yield Row("log lines taken and shown", 10_000, rate, "a second",
                  f"{view.dropped:,} of {view.count:,} dropped from the view; "
                  f"longest pause of the page {longest:.0f} ms", is_least=True)  # fmt: skip
        view.close()
        flood = RemoteLog(title="flood")
        with shown(chromium, flood) as (page, host):
            began = time.monotonic()
            flood.feed(*(JobEvent("a", text=f"line {n}") for n in range(FLOOD)))
            took_s = time.monotonic() - began
            time.sleep(0.3)
            deliver(page, host)
            page.evaluate(IN_SIGHT, [".insitu-view", f"{FLOOD:,} lines"])
            text = page.locator(".insitu-view").inner_text()
        told = next((line for line in text.splitlines() if f"{FLOOD:,}" in line), "")
        yield Row(f"log lines of a flood of {FLOOD:,} that are not counted", 0,
                  FLOOD - flood.count, "", f"{FLOOD / took_s:,.0f} came a second, "
                  f"{flood.dropped:,} were dropped from the view, which says “{told}”")  # fmt: skip
        flood.close()


def _feed(view: RemoteLog, began: float) -> None:
    said = 0
    while (passed := time.monotonic() - began) < FED_S:
        due = int(LINES_A_SECOND * passed) - said
        view.feed(*(JobEvent("a", text=f"line {said + n} of a fast job") for n in range(due)))
        said += due
        time.sleep(0.001)
    view.feed(*(JobEvent("a", text="last") for _ in range(int(LINES_A_SECOND * FED_S) - said)))


# Generations --------------------------------------------------------------------------------------


def generation() -> Iterator[Row]:
    """What a step sends, and how long the page needs for it."""
    model = LanguageModel("demo")
    view = watch_generation(model, "The Eiffel Tower is in the city of", max_new_tokens=1)
    host = Host(view)
    before = host.sent
    branch = view.fork(0, token=" Rome", max_new_tokens=20)
    each = (host.sent - before) / len(branch.own)
    yield Row("generation step of the demo model, sent", 50, each / KB, "kB")
    view.close()

    many = GenerationView.of()
    with browser() as chromium, shown(chromium, many) as (page, host):
        before, taken = host.sent, []
        for number in range(40):
            top = [(f" token {n}", 1 / (n + 2)) for n in range(10)]
            many.add(f" token {number}", values=torch.rand(96), chance=0.5, entropy=1.0, top=top,
                     texts=[f" word {n}" for n in range(96)])  # fmt: skip
            began = time.perf_counter()
            deliver(page, host)
            page.evaluate(
                "() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))"
            )
            taken.append((time.perf_counter() - began) * 1000)
    yield Row("generation step of 96 layers, sent", 50, (host.sent - before) / 40 / KB, "kB")
    yield Row("generation step of 96 layers, painted", None, statistics.median(taken), "ms")
    many.close()


# Completion ---------------------------------------------------------------------------------------


def completion() -> Iterator[Row]:
    """The pause after Tab."""
    shell = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "insitu")
    shell.user_ns.update(model=LanguageModel("demo"), large=model_of(100_000))
    for text, of, wanted in (
        ("model.transformer.h[3].", "a module's path", "mlp"),
        ("large[0][4321].", "a path among 100,000 modules", "norm_2"),
    ):
        taken = []
        for _ in range(21):
            began = time.perf_counter()
            with provisionalcompleter():
                found = list(shell.Completer.completions(text, len(text)))
            taken.append((time.perf_counter() - began) * 1000)
        assert any(it.text.endswith(wanted) for it in found), text
        yield Row(f"completion of {of}", None, statistics.median(taken), "ms",
                  f"{len(found)} offered; the first time {taken[0]:.0f} ms")  # fmt: skip


# Notebooks ----------------------------------------------------------------------------------------


def notebooks() -> Iterator[Row]:
    """The tutorials: as files, and run from the first cell to the last."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        yield Row(f"{path.name}, size", 500, path.stat().st_size / KB, "kB")
        book = nbformat.read(path, as_version=4)
        began = time.perf_counter()
        NotebookClient(
            book, timeout=120, resources={"metadata": {"path": str(path.parent)}}
        ).execute()
        yield Row(f"{path.name}, run with its kernel's start", 90, time.perf_counter() - began, "s")


MEASURED: dict[str, Callable[[], Iterator[Row]]] = {
    "tree": tree, "cache": cache, "generation": generation, "log": log, "completion": completion,
    "notebooks": notebooks, "bundles": bundles,
}  # fmt: skip


def number(value: float) -> str:
    """As many digits as say something."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2g}"


def table(rows: list[Row]) -> str:
    """The figures as Markdown."""
    lines = ["| what | budget | measured | |", "|---|--:|--:|---|"]
    for row in rows:
        limit = "–" if row.limit is None else f"{number(row.limit)} {row.unit}".strip()
        over = "" if row.is_kept else " **over**"
        measured = f"{number(row.measured)} {row.unit}".strip()
        limit = f"at least {limit}" if row.is_least else limit
        lines.append(f"| {row.of} | {limit} | {measured}{over} | {row.note} |")
    return "\n".join(lines)


def written(page: str, told: str) -> str:
    """The page with the table between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    assert rest, f"{PAGE} has no place for the table: {BEGIN} … {END}"
    return f"{before}{BEGIN}\n{told}\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *MEASURED], help="all of them without")
    parser.add_argument("--write", action="store_true", help="into docs/widgets.md too")
    given = parser.parse_args()
    load = os.getloadavg()[0]
    rows = [row for part in given.parts or MEASURED for row in MEASURED[part]()]
    about = (
        f"{datetime.date.today()}: insitu {insitu.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {os.cpu_count()} cores, chromium; "
        f"{load:.1f} processes wanted them when it began.\n\n"
    )
    told = about + table(rows)
    print(told)
    if given.write and not given.parts:
        PAGE.write_text(written(PAGE.read_text(), told))
    return 0 if all(row.is_kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
