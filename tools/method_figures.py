"""The figure of each method on the demo model, for docs/methods.md; offline, by chromium.

python tools/method_figures.py                      # all, into docs/images/methods: make figures
python tools/method_figures.py logit_lens steering  # some

A figure is the plotly figure a notebook would show. The programs are those of docs/methods.md: the
page is read, each of its blocks is run, and what its last line gives is drawn.
"""

import argparse
import ast
import re
import sys
from pathlib import Path
from typing import Any

import torch
from playwright.sync_api import sync_playwright

PAGE = Path("docs/methods.md")
FOLDER = Path("docs/images/methods")
CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def programs(page: str) -> dict[str, str]:
    """The blocks of the page by the image that follows each; that without one is the setup."""
    found = {"": ""}
    for block, after in re.findall(r"```python\n(.*?)```\n(.*?)(?=```python|\Z)", page, re.S):
        image = re.search(r"images/methods/(\w+)\.png", after)
        if image is None:
            found[""] += block
        else:
            found[image[1]] = block
    return found


def last_value(program: str, names: dict[str, Any]) -> Any:
    """Run a program, and give the value of its last line."""
    tree = ast.parse(program)
    last = tree.body.pop()
    assert isinstance(last, ast.Expr), ast.unparse(last)
    exec(compile(tree, str(PAGE), "exec"), names)
    return eval(compile(ast.Expression(last.value), str(PAGE), "eval"), names)


def draw(browser: Any, figure: Any, path: Path) -> None:
    """Screenshot a figure as a page shows it, at twice the pixels."""
    figure.update_layout(width=figure.layout.width or 760, height=figure.layout.height or 420)
    size = {"width": int(figure.layout.width), "height": int(figure.layout.height)}
    page = browser.new_page(viewport=size, device_scale_factor=2)
    page.set_content(
        "<style>body{margin:0}</style>"
        + figure.to_html(include_plotlyjs=True, config={"displayModeBar": False})
    )
    page.wait_for_selector(".main-svg")
    page.evaluate("document.fonts.ready.then(() => null)")
    page.locator(".plotly-graph-div").screenshot(path=path)
    page.close()


def smaller(path: Path) -> None:
    """Few colours are enough for a figure, and a fifth of the bytes."""
    from PIL import Image

    with Image.open(path) as image:
        image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", help="which ones; all by default")
    wanted = parser.parse_args().methods
    torch.set_num_threads(1)
    found = programs(PAGE.read_text())
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(found.pop(""), str(PAGE), "exec"), names)
    if unknown := set(wanted) - set(found):
        print(f"docs/methods.md has no figure for {', '.join(sorted(unknown))}", file=sys.stderr)
        return 1
    FOLDER.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for name in wanted or found:
            path = FOLDER / f"{name}.png"
            draw(browser, last_value(found[name], dict(names)), path)
            smaller(path)
            print(f"{path}: {path.stat().st_size // 1024} kB")
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
