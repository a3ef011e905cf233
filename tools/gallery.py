"""Pictures of widgets, light and dark, without a JupyterLab: their bundles in a bare chromium page.

    from gallery import pictures
    pictures({"lens_grid": widget}, folder)          # lens_grid-light.png, lens_grid-dark.png

The page gives each bundle a model with the widget's state; questions are answered by the widget in
this process, as a kernel would.
"""

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

PAGE = """<!doctype html><meta charset=utf-8><body style="margin:0;padding:8px;background:PAPER">
<div id=view style="width:WIDTHpx"></div><script>
const bytes = text => new DataView(Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer);
const revive = it => Array.isArray(it) ? it.map(revive)
  : it && typeof it === "object" ? ("$bytes" in it ? bytes(it.$bytes)
  : Object.fromEntries(Object.entries(it).map(([k, v]) => [k, revive(v)]))) : it;
const heard = {};
const tell = (event, ...args) => (heard[event] || []).forEach(f => f(...args));
const state = revive(STATE);
const model = {
  get: name => state[name], save_changes() {},
  set(name, value) { state[name] = value; tell("change:" + name); },
  on: (event, f) => (heard[event] ||= []).push(f), off() {},
  send: async content => {
    const { value, trouble, buffers } = await window.answer(content.name, content.given || {});
    tell("msg:custom", { answer: content.ask, value, trouble }, buffers.map(bytes));
  },
};
window.ready = import(URL.createObjectURL(new Blob([CODE], { type: "text/javascript" })))
  .then(({ default: widget }) => widget.render({ model, el: document.getElementById("view") }));
</script>"""

Act = Callable[[Any], None]


def pictures(
    widgets: dict[str, Any], folder: Path, *, acts: dict[str, Act] | None = None, width: int = 940
) -> list[Path]:
    """Take the pictures; `acts` may click about in the page first. An error in the page raises."""
    folder.mkdir(parents=True, exist_ok=True)
    taken = []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        for name, widget in widgets.items():
            for theme in ("light", "dark"):
                page = chromium.new_page(
                    color_scheme=theme, viewport={"width": width + 20, "height": 900}
                )
                wrong: list[str] = []
                page.on("pageerror", lambda error, wrong=wrong: wrong.append(str(error)))
                page.expose_function("answer", _answering(widget))
                page.set_content(_page(widget, theme, width))
                page.evaluate("window.ready")
                page.wait_for_timeout(250)
                if acts and name in acts:
                    acts[name](page)
                    page.wait_for_timeout(250)
                taken.append(folder / f"{name}-{theme}.png")
                page.locator("#view").screenshot(path=taken[-1])
                page.close()
                assert not wrong, f"{name}: {wrong}"
        chromium.close()
    return taken


def _page(widget: Any, theme: str, width: int) -> str:
    names = [name for name in widget.keys if not name.startswith("_")]
    state = {
        name: _plain(getattr(widget, name)) for name in names if name not in ("layout", "comm")
    }
    paper = "#ffffff" if theme == "light" else "#16191d"
    code = str(widget._esm)
    text = PAGE.replace("PAPER", paper).replace("WIDTH", str(width))
    script = json.dumps(code).replace("</", "<\\/")
    return text.replace("STATE", json.dumps(state).replace("</", "<\\/")).replace("CODE", script)


def _answering(widget: Any) -> Callable[[str, dict[str, Any]], dict[str, Any]]:
    def answer(name: str, given: dict[str, Any]) -> dict[str, Any]:
        sent: list[Any] = []
        said, widget.send = widget.send, lambda content, buffers=(): sent.append((content, buffers))
        try:
            widget._heard(widget, {"ask": 0, "name": name, "given": given}, [])
        finally:
            widget.send = said
        content, buffers = sent[0]
        parts = [base64.b64encode(bytes(part)).decode() for part in buffers or ()]
        return {"value": content.get("value"), "trouble": content.get("trouble"), "buffers": parts}

    return answer


def _plain(value: Any) -> Any:
    if isinstance(value, (bytes, memoryview)):
        return {"$bytes": base64.b64encode(bytes(value)).decode()}
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value
