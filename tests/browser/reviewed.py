"""What a view is made of, in words, beside what was reviewed by eye: the same roles and names in
the same order, canvases that are painted, and ink that stands out from its paper in both themes.

assert_as_reviewed(notebook, 1, "lens_grid")        # tests/browser/reviewed/lens_grid.txt

Numbers and how often a line repeats may differ. After a change that is meant, look at the pictures
(`SCREENSHOTS=folder`), and write the new structure down with `REVIEWED=1`.
"""

import os
import re
from itertools import groupby
from pathlib import Path

FOLDER = Path(__file__).parent / "reviewed"
CONTRAST_MIN = 4.5
"""Of text and paper, by the Web Content Accessibility Guidelines."""

PAINT = """view => {
    const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
    const channel = value => {
        const part = value / 255;
        return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    };
    const light = ([r, g, b]) =>
        0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
    const paperOf = element => {
        for (let it = element; it; it = it.parentElement) {
            const found = rgb(getComputedStyle(it).backgroundColor);
            if (found.length === 3 || found[3] > 0.5) return found;
        }
        return [255, 255, 255];
    };
    const ink = light(rgb(getComputedStyle(view).color)), paper = light(paperOf(view));
    const colours = canvas => {
        const { width, height } = canvas;
        if (!width || !height) return 0;
        const data = canvas.getContext('2d').getImageData(0, 0, width, height).data;
        const seen = new Set();
        for (let at = 0; at < data.length && seen.size < 3; at += 4)
            seen.add(data.slice(at, at + 4).join());
        return seen.size;
    };
    const isSeen = it => it.getClientRects().length > 0;
    const canvases = [...view.querySelectorAll('canvas')].filter(isSeen);
    const shapes = [...view.querySelectorAll('svg *')].filter(isSeen).map(it => it.tagName);
    return {
        paper: paper > 0.5 ? 'light' : 'dark',
        contrast: (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05),
        canvases: canvases.map(it => (colours(it) > 1 ? 'painted' : 'blank')),
        shapes: [...new Set(shapes)].sort(),
        overflows: view.scrollWidth > view.clientWidth + 1,
    };
}"""


def assert_as_reviewed(notebook, index, name):
    """A view has the structure that was reviewed, and is legible in both themes."""
    view = notebook.cell(index).locator(".insitu-view").first
    seen = [*_alike(view.aria_snapshot())]
    for theme in ("light", "dark"):
        notebook.paint(theme)
        paint = view.evaluate(PAINT)
        assert paint["paper"] == theme
        assert paint["contrast"] >= CONTRAST_MIN
        assert not paint["overflows"]
        drawn = [*paint["shapes"], *(key for key, _ in groupby(paint["canvases"]))]
        seen.append(f"{theme}: {', '.join(drawn) or 'text alone'}")
    notebook.paint("light")
    file, found = FOLDER / f"{name}.txt", "\n".join(seen) + "\n"
    if os.environ.get("REVIEWED"):
        FOLDER.mkdir(exist_ok=True)
        file.write_text(found, encoding="utf-8")
    assert found == file.read_text(encoding="utf-8")


def _alike(snapshot):
    """Its lines without numbers and jobs' names, and without what repeats the lines before."""
    text = re.sub(r"\b[0-9a-f]{12,}\b", "id", snapshot + "\n")
    text = re.sub(r"[-−]?\d+([.,]\d+)*(e[-+]?\d+)?", "n", text)
    return re.sub(r"((?:.*\n){1,6}?)\1+", r"\1", text).splitlines()
