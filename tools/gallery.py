"""Pictures of widgets, light and dark, without a JupyterLab: their bundles in a bare chromium page.

python tools/gallery.py                        # all of docs/widgets.md, into docs/images/widgets
python tools/gallery.py lens_grid stepper      # some
pictures({"lens_grid": widget}, folder)        # lens_grid-light.png, lens_grid-dark.png

The page gives each bundle a model with the widget's state; questions are answered by the widget in
this process, as a kernel would, and what changes here changes there. What each picture shows is in
`gallery_scenes.py`.
"""

import argparse
import base64
import contextlib
import json
import re
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gallery_scenes import SCENES, prepared
from PIL import Image
from playwright.sync_api import sync_playwright

FOLDER = Path(__file__).parent.parent / "docs/images/widgets"
WIDTH = 860
SCALE, COLOURS = 1.5, 48
"""Pixels for each of the page, and a third of the palette: a picture of a third the bytes."""
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-quic"]
HOSTS_OWN = ("layout", "comm", "tabbable", "tooltip", "keys")

PAGE = """<!doctype html><meta charset=utf-8><body style="margin:0;padding:8px;background:PAPER">
<div id=view style="width:WIDTHpx;font:13px system-ui,sans-serif">as a notebook's text <b>is</b>
<code style="font:12px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace">▾ ○ 0 →</code></div>
<script>
const bytes = text => new DataView(Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer);
const revive = it => Array.isArray(it) ? it.map(revive)
  : it && typeof it === "object" ? ("$bytes" in it ? bytes(it.$bytes)
  : Object.fromEntries(Object.entries(it).map(([k, v]) => [k, revive(v)]))) : it;
const heard = {}, changed = {};
const tell = (event, ...args) => (heard[event] || []).forEach(f => f(...args));
const state = revive(STATE);
window.deliver = messages => messages.forEach(({ changes, said }) => {
  if (said) return tell("msg:custom", said.content, said.buffers.map(bytes));
  const news = Object.entries(revive(changes)).filter(([name]) => name in state);
  news.forEach(([name, value]) => { state[name] = value; });
  news.forEach(([name]) => tell("change:" + name));
  tell("change");
});
const model = {
  get: name => state[name],
  set(name, value) { state[name] = changed[name] = value; tell("change:" + name); },
  save_changes() {
    const now = { ...changed };
    Object.keys(now).forEach(name => delete changed[name]);
    window.saved(now).then(window.deliver);
  },
  on: (event, f) => (heard[event] ||= []).push(f),
  off: (event, f) => { heard[event] = f ? (heard[event] || []).filter(it => it !== f) : []; },
  send: async content => window.deliver(await window.asked(content)),
};
const painted = () => new Promise(done => requestAnimationFrame(() => setTimeout(done)));
window.opened = async until => {
  const url = URL.createObjectURL(new Blob([CODE], { type: "text/javascript" }));
  const { default: widget } = await import(url);
  await painted();  // a notebook has loaded its fonts long since
  const began = performance.now();
  await widget.render({ model, el: document.getElementById("view") });
  while (until && !document.querySelector(until)) await new Promise(requestAnimationFrame);
  await painted();
  return performance.now() - began;
};
</script>"""

Act = Callable[[Any], None]


class Host:
    """What stands between a widget and its page: questions one way, news the other.

        host = Host(widget)
        host.sent                      # bytes that went to the page so far

    A widget may speak on any thread; its news wait until the page is given them.
    """

    def __init__(self, widget: Any) -> None:
        self.widget = widget
        self.sent = 0
        self._news: deque[dict[str, Any]] = deque()
        self._names = [
            name for name in widget.keys if not name.startswith("_") and name not in HOSTS_OWN
        ]
        widget.observe(self._changed, self._names)
        widget.send = self._said

    def state(self) -> dict[str, Any]:
        """All that the page is told at first."""
        return self._counted({name: getattr(self.widget, name) for name in self._names})

    def news(self) -> list[dict[str, Any]]:
        """What the page has not been told yet."""
        return [self._news.popleft() for _ in range(len(self._news))]

    def asked(self, content: dict[str, Any]) -> list[dict[str, Any]]:
        """A message from the page."""
        self.widget._heard(self.widget, content, [])
        return self.news()

    def saved(self, changes: dict[str, Any]) -> list[dict[str, Any]]:
        """State that the page has changed."""
        for name, value in changes.items():
            setattr(self.widget, name, value)
        return self.news()

    def _changed(self, change: Any) -> None:
        self._news.append({"changes": self._counted({change["name"]: change["new"]})})

    def _said(self, content: Any, buffers: Any = None) -> None:
        parts = [bytes(part) for part in buffers or ()]
        said = self._counted({"content": content})
        self.sent += sum(map(len, parts))
        said["buffers"] = [base64.b64encode(part).decode() for part in parts]
        self._news.append({"said": said})

    def _counted(self, told: dict[str, Any]) -> dict[str, Any]:
        self.sent += size_sent(told)
        plain: dict[str, Any] = _plain(told)
        return plain


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """A chromium that reaches nothing outside."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield chromium
        chromium.close()


@contextlib.contextmanager
def shown(
    chromium: Any,
    widget: Any,
    *,
    theme: str = "light",
    width: int = WIDTH,
    scale: float = 1,
    until: str = "",
) -> Iterator[tuple[Any, Host]]:
    """A page with a widget in it; `page.opened_ms` is how long its first picture took.

    That picture has what the selector `until` finds. An error in the page raises at the end.
    """
    page = chromium.new_page(
        color_scheme=theme,
        viewport={"width": width + 16, "height": 1000},
        device_scale_factor=scale,
    )
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    host = Host(widget)
    page.expose_function("asked", host.asked)
    page.expose_function("saved", host.saved)
    page.set_content(_page(host, theme, width))
    page.opened_ms = page.evaluate("until => window.opened(until)", until)
    try:
        yield page, host
    finally:
        page.close()
    assert not wrong, f"{type(widget).__name__}: {wrong}"


def deliver(page: Any, host: Host) -> None:
    """Tell the page what has changed here since."""
    if news := host.news():
        page.evaluate("news => window.deliver(news)", news)


def pictures(
    widgets: dict[str, Any],
    folder: Path,
    *,
    acts: dict[str, Act] | None = None,
    width: int = WIDTH,
    scale: float = 1,
) -> list[Path]:
    """Take the pictures; `acts` may click about in the page first. An error in the page raises."""
    folder.mkdir(parents=True, exist_ok=True)
    taken = []
    with browser() as chromium:
        for name, widget in widgets.items():
            for theme in ("light", "dark"):
                with shown(chromium, widget, theme=theme, width=width, scale=scale) as (page, host):
                    page.wait_for_timeout(250)
                    if acts and name in acts:
                        acts[name](page)
                    deliver(page, host)
                    page.wait_for_timeout(250)
                    taken.append(folder / f"{name}-{theme}.png")
                    page.locator("#view").screenshot(path=taken[-1])
    return taken


def size_sent(told: Any) -> int:
    """How many bytes a message has: its JSON, and its buffers as they are."""
    buffers: list[int] = []

    def put_aside(part: Any) -> None:
        buffers.append(memoryview(part).nbytes)

    return len(json.dumps(told, default=put_aside, ensure_ascii=False).encode()) + sum(buffers)


def squeezed(path: Path) -> None:
    """Write a picture with a palette of common colours, of rare ones, and of those between."""
    picture = Image.open(path).convert("RGB")
    colours, places, counts = np.unique(
        np.asarray(picture).reshape(-1, 3), axis=0, return_inverse=True, return_counts=True
    )
    kept = colours[np.argsort(-counts)[:COLOURS]].flatten().tolist()
    for method in (Image.Quantize.MAXCOVERAGE, Image.Quantize.MEDIANCUT):
        kept += picture.quantize(COLOURS, method).getpalette() or []
    palette = np.array(kept, np.int16).reshape(-1, 3)
    far = np.abs(colours[:, None].astype(np.int16) - palette).sum(-1)
    small = Image.fromarray(far.argmin(1)[places].reshape(picture.size[::-1]).astype(np.uint8), "P")
    small.putpalette(kept)
    small.save(path, optimize=True)


def _page(host: Host, theme: str, width: int) -> str:
    told = {
        "PAPER": "#ffffff" if theme == "light" else "#16191d",
        "WIDTH": str(width),
        "STATE": json.dumps(host.state()).replace("</", "<\\/"),
        "CODE": json.dumps(str(host.widget._esm)).replace("</", "<\\/"),
    }
    return re.sub("PAPER|WIDTH|STATE|CODE", lambda found: told[found[0]], PAGE)


def _plain(value: Any) -> Any:
    if isinstance(value, (bytes, memoryview)):
        return {"$bytes": base64.b64encode(bytes(value)).decode()}
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="views; all of them without")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    given = parser.parse_args()
    names = given.names or list(SCENES)
    for name in names:
        widget, act = prepared(name)
        for path in pictures({name: widget}, given.folder, acts={name: act}, scale=SCALE):
            squeezed(path)
            print(f"{path}  {path.stat().st_size / 1000:.0f} kB")
        widget.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
