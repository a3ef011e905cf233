"""Views of data in a real JupyterLab, all in one notebook: clicked, keyed, hovered, exported.

What a view shows is compared with torch in the kernel, and one view follows another's selection.
"""

import csv
import io
import math
import re
from functools import partial

import pytest
from widget_pages import assert_told, eventually, look, open_cells, reviewed, saved, told

pytestmark = pytest.mark.slow

PROMPT = "The Eiffel Tower is in the city of"
MARY = "When Mary and John went to the store, John gave a drink to"
JOHN = "When Mary and John went to the store, Mary gave a drink to"
CELLS = [
    "import insitu, json, torch\nfrom insitu.methods import attention_patterns, logit_lens\n"
    "from insitu.methods.metrics import logit_difference\n"
    f"model, prompt = insitu.LanguageModel('demo'), {PROMPT!r}\n"
    "with model.trace(prompt) as tracer:\n    cache = tracer.cache()\n"
    "broken = torch.arange(60.0).reshape(3, 4, 5)\nbroken[1, 2, 3] = float('nan')\n"
    "lens, attention = logit_lens(model, prompt), attention_patterns(model, prompt)",
    "inspector = cache.view()\ninspector",
    "hunted = insitu.show({'fine': torch.arange(6.0).reshape(2, 3), 'broken <b>': broken})\nhunted",
    "grid = insitu.show(lens)\ngrid",
    "heads = insitu.show(attention)\nheads",
    f"patches = insitu.widgets.patch_map(model, {MARY!r}, {JOHN!r},\n"
    "    logit_difference(model, ' Mary', ' John'))\npatches",
    "browser = insitu.show(model.transformer.h[0].attn.source)\nbrowser",
]
BROKEN = [[20.0 + 5 * row + it for it in range(5)] for row in range(4)]
BROKEN[2][3] = math.nan
CACHE, HUNTED, GRID, HEADS, PATCHES, SOURCE = range(1, 7)


@pytest.fixture(scope="module")
def shown(labs):
    """A page with every view of data open."""
    lab = labs("data-views")
    notebook = open_cells(lab, CELLS)
    for index in range(1, len(CELLS)):
        look(notebook, index)  # none grows any more, and moves those below
    yield lab, notebook
    lab.close()


@pytest.fixture
def notebook(shown):
    """That page; after each test: nothing on its console, and nothing asked of other machines."""
    lab, notebook = shown
    yield notebook
    assert notebook.said == []
    assert lab.outside == []


def numbers_of(text):
    """The numbers of a CSV file, without the names above and before them."""
    _, *rows = csv.reader(io.StringIO(text, newline=""))
    return [[float(cell) for cell in row[1:]] for row in rows]


def column_of(text, name):
    """The numbers of one column of a CSV file with a row a cell; NaN where there is none."""
    rows = csv.DictReader(io.StringIO(text, newline=""))
    return [float(row[name]) if row[name] else math.nan for row in rows]


def assert_near(numbers, expected):
    assert [len(row) for row in numbers] == [len(row) for row in expected]
    for row, wanted in zip(numbers, expected, strict=True):
        assert row == pytest.approx(wanted, abs=1e-5, nan_ok=True)


def line_under(map):
    """The words under a heat map: where the cursor is, and what is there."""
    return map.locator("xpath=../following-sibling::div[2]")


def cursor(map, *keys):
    """Put the cursor of a heat map into its first cell, and press keys from there."""
    map.focus()
    for key in ("ArrowUp",) * 6 + ("ArrowLeft",) * 14 + keys:
        map.press(key)


def drag(notebook, map, start, end):
    """Draw over a heat map, between two points given as shares of its width and height."""
    map.scroll_into_view_if_needed()
    box = map.bounding_box()
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, end)]
    notebook.page.mouse.move(*points[0])
    notebook.page.mouse.down()
    notebook.page.mouse.move(*points[1], steps=4)
    notebook.page.mouse.up()


def is_picture(content):
    return content.startswith(b"\x89PNG\r\n") and len(content) > 500


def test_a_cache_is_searched_read_and_zoomed(notebook):
    view = notebook.cell(CACHE).locator(".insitu-cache_inspector")
    view.get_by_role("searchbox").fill("h.3.mlp.output")
    row = view.get_by_role("option").filter(has_text="transformer.h.3.mlp.output")
    row.click()
    view.locator(".bar b").filter(has_text="h.3.mlp.output").wait_for()
    chosen = "cache['model.transformer.h.3.mlp'].output"
    assert_told(notebook, f"inspector.tensor.equal({chosen})", True)
    expected = told(notebook, f"[float(f({chosen})) for f in (torch.mean, torch.std, torch.min)]")
    row.locator(".number").filter(has_text="none").wait_for()
    cells = row.locator(".number").all_inner_texts()[1:4]
    seen = [float(cell.replace("−", "-")) for cell in cells]
    assert seen == pytest.approx(expected, rel=1e-2, abs=1e-3)
    whole = told(notebook, f"{chosen}[0].tolist()")
    assert_near(numbers_of(saved(notebook, view, "CSV", "tensor.csv")), whole)
    assert is_picture(saved(notebook, view, "PNG", "tensor.png"))

    drag(notebook, view.locator("canvas"), (0.3, 0.4), (0.5, 0.8))
    view.get_by_role("button", name="Whole").wait_for()
    part = re.search(r"rows (\d+)–(\d+), columns (\d+)–(\d+)", view.inner_text())
    top, bottom, left, right = map(int, part.groups())
    expected = [row[left : right + 1] for row in whole[top : bottom + 1]]
    assert_near(numbers_of(saved(notebook, view, "CSV", "tensor.csv")), expected)
    view.get_by_role("button", name="Whole").click()
    view.get_by_role("button", name="Whole").wait_for(state="detached")

    canvas = view.locator("canvas")
    cursor(canvas)
    notebook.page.keyboard.down("Shift")
    for key in ["ArrowRight"] * 5 + ["ArrowDown"] * 2:
        notebook.page.keyboard.press(key)
    assert view.get_by_role("button", name="Whole").count() == 0  # none while Shift is held
    notebook.page.keyboard.up("Shift")
    view.get_by_text("rows 0–2, columns 0–5").wait_for()
    expected = [row[:6] for row in whole[:3]]
    assert_near(numbers_of(saved(notebook, view, "CSV", "tensor.csv")), expected)
    assert saved(notebook, view, "SVG", "tensor.svg").count('class="cell"') == 18
    view.get_by_role("button", name="Whole").click()
    view.get_by_role("button", name="Whole").wait_for(state="detached")
    assert "<svg" in saved(notebook, view, "SVG", "histogram.svg")

    view.get_by_role("searchbox").fill("")
    view.get_by_role("option").filter(has_text="transformer.wte").wait_for()
    view.get_by_role("listbox").press("Home")
    view.get_by_role("listbox").press("ArrowDown")
    view.locator(".bar b").filter(has_text="model.transformer.output").wait_for()
    assert_told(notebook, "inspector.chosen", 1)
    reviewed(notebook, CACHE, "cache_inspector")


def test_a_nan_is_found_and_names_are_not_html(notebook):
    view = notebook.cell(HUNTED).locator(".insitu-cache_inspector")
    view.get_by_role("button", name="Find NaN").click()
    view.locator(".bar b").filter(has_text="broken <b>").wait_for()
    assert_told(notebook, "[hunted.chosen, hunted.tensor is broken]", [1, True])
    row = view.get_by_role("option").filter(has_text="broken <b>")
    row.get_by_text("1 NaN").wait_for()
    view.get_by_label("Place on dimension 0").fill("1")
    view.get_by_text("1 of 3").wait_for()
    assert_near(numbers_of(saved(notebook, view, "CSV", "tensor.csv")), BROKEN)
    view.get_by_role("button", name="Find NaN").click()
    view.get_by_text("no NaN and no ∞ after this one").wait_for()
    reviewed(notebook, HUNTED, "cache_inspector_nan")


def assert_likely(notebook, view, layer, token):
    """The likeliest tokens under a lens are those that torch makes of that layer there."""
    hidden = f"cache['model.transformer.h.{layer}'].output[0, {token}]"
    logits = f"model.lm_head._module(model.transformer.ln_f._module({hidden}))"
    notebook.python(f"top = torch.softmax({logits}, -1).topk(5)")
    names = told(notebook, "[model.tokenizer.decode([it]) for it in top.indices]")
    names = [it.replace(" ", "·") for it in names]
    assert eventually(notebook, view.locator(".top code").all_inner_texts, names) == names
    chances = [float(it) for it in view.locator(".top .soft").all_inner_texts()]
    assert chances == pytest.approx(told(notebook, "top.values.tolist()"), rel=1e-2, abs=1e-3)


def test_a_cell_of_a_lens_is_selected_everywhere(notebook):
    view = notebook.cell(GRID).locator(".insitu-lens_grid")
    canvas = view.locator("canvas")
    cursor(canvas, "ArrowDown", "ArrowRight", "ArrowRight", "Enter")
    view.locator(".top code").nth(4).wait_for()
    assert_told(notebook, "[*grid.cell]", [4, 2])
    assert_likely(notebook, view, 4, 2)
    assert line_under(canvas).inner_text().startswith("layer 4 · pos")

    heads = notebook.cell(HEADS).locator(".insitu-attention_view")
    heads.get_by_text("Tower reads").wait_for()
    assert heads.get_by_label("Layer").evaluate("choice => choice.selectedIndex") == 4
    notebook.python("insitu.selection.layer, insitu.selection.token = 2, 5")
    line_under(canvas).get_by_text("layer 2 · pos").wait_for()
    heads.get_by_text("the reads").wait_for()
    assert_likely(notebook, view, 2, 5)

    canvas.hover(position={"x": 300, "y": 60})
    hovered = line_under(canvas).inner_text()
    assert hovered.startswith("layer ")
    notebook.page.mouse.move(0, 0)
    line_under(canvas).get_by_text("layer 2 · pos").wait_for()  # what is selected is told again
    reviewed(notebook, GRID, "lens_grid")


def test_a_lens_shows_its_measures_and_gives_them_away(notebook):
    view = notebook.cell(GRID).locator(".insitu-lens_grid")
    saved_lens = saved(notebook, view, "CSV", "lens.csv")
    for of in ("lens", "lens.further['kl']"):
        expected = told(notebook, f"{of}.values.flatten().tolist()")
        quantity = told(notebook, f"{of}.quantity")
        assert column_of(saved_lens, quantity) == pytest.approx(expected, abs=1e-5)
    words = [row["text"] for row in csv.DictReader(io.StringIO(saved_lens, newline=""))]
    assert words == told(notebook, "list(lens.texts)")
    assert saved(notebook, view, "SVG", "lens.svg").count('class="cell"') == 6 * 8
    assert is_picture(saved(notebook, view, "PNG", "lens.png"))
    view.get_by_text("As a table").click()
    view.get_by_role("row").nth(6 * 8).wait_for()
    assert view.get_by_role("row").count() == 1 + 6 * 8
    view.get_by_text("As a table").click()
    view.get_by_label("What is shown").select_option(index=0)


def test_attention_is_read_by_head_and_token_and_zoomed(notebook):
    view = notebook.cell(HEADS).locator(".insitu-attention_view")
    view.get_by_label("Layer").select_option(index=3)
    view.get_by_role("button", name="head 2").click()
    view.locator(".tokens button").nth(6).click()
    view.get_by_text("city reads").wait_for()
    wanted = {"token": 6, "layer": 3, "head": 2, "step": None}
    assert_told(notebook, "insitu.selection.as_dict()", wanted)
    weights = [f"{it:.4f}" for it in told(notebook, "attention.values[3, 2, 6].tolist()")]
    titles = "buttons => buttons.map(button => button.title)"
    read = partial(view.locator(".tokens button").evaluate_all, titles)
    assert eventually(notebook, read, weights) == weights
    expected = told(notebook, "attention.values[3, 2].tolist()")
    assert_near(numbers_of(saved(notebook, view, "CSV", "attention.csv")), expected)
    assert is_picture(saved(notebook, view, "PNG", "attention.png"))

    notebook.python("insitu.selection.head = 1")
    view.locator("[aria-label='head 1'][aria-pressed=true]").wait_for()
    reviewed(notebook, HEADS, "attention_view")
    canvas = view.locator("canvas[role=img]")
    drag(notebook, canvas, (0.4, 0.4), (1.2, 0.7))  # let go beyond its edge
    view.get_by_role("button", name="Whole map").wait_for()
    part = numbers_of(saved(notebook, view, "CSV", "attention.csv"))
    assert 2 <= len(part) < 8
    view.get_by_role("button", name="Whole map").click()
    view.get_by_role("button", name="Whole map").wait_for(state="hidden")
    expected = told(notebook, "attention.values[3, 1].tolist()")
    assert_near(numbers_of(saved(notebook, view, "CSV", "attention.csv")), expected)


def assert_stands_in_a_cell_below(notebook, view, code):
    """The program of a run is put into a cell that runs; it is taken out again."""
    before = len(notebook.cells())
    view.get_by_role("button", name="Insert below").click()
    view.get_by_text("It stands in the cell below.").first.wait_for()
    cells = notebook.cells()
    assert (len(cells), cells[PATCHES + 1]["source"]) == (before + 1, code)
    notebook.python("exact = None")
    notebook.run(PATCHES + 1)
    assert not notebook.errors(), notebook.errors()[0]
    assert "share restored" in str(notebook.cells()[PATCHES + 1]["outputs"])
    assert_told(
        notebook, "torch.allclose(exact.values, patches.exact.values[2:4, 9:11], atol=1e-6)", True
    )
    notebook.command("notebook:delete-cell")
    assert len(notebook.cells()) == before


def test_brushed_patches_are_run_exactly(notebook):
    view = notebook.cell(PATCHES).locator(".insitu-patch_map")
    canvas = view.locator("canvas")
    cursor(canvas, *["ArrowDown"] * 2, *["ArrowRight"] * 9)
    canvas.press("Shift+ArrowRight")
    canvas.press("Shift+ArrowDown")
    view.get_by_role("button", name="Run these 4 patches").click()
    view.get_by_text("activation_patching(").wait_for()
    view.locator("svg circle").nth(3).wait_for()
    canvas.press("ArrowLeft")
    line_under(canvas).get_by_text("exact; the estimate was").wait_for()
    ran = "torch.isfinite(patches.exact.values)"
    assert_told(notebook, f"{ran}.nonzero().tolist()", [[2, 9], [2, 10], [3, 9], [3, 10]])
    code = view.locator("pre").inner_text()
    notebook.python(
        f"{code}\nassert torch.allclose(exact.values, patches.exact.values[2:4, 9:11], atol=1e-6)"
    )
    assert_stands_in_a_cell_below(notebook, view, code)
    canvas.press("Enter")
    assert_told(notebook, "insitu.selection.as_dict()['token']", 9)
    saved_patches = saved(notebook, view, "CSV", "patches.csv")
    for name in ("estimate", "exact"):
        expected = told(notebook, f"patches.{name}.values.flatten().tolist()")
        assert column_of(saved_patches, name) == pytest.approx(expected, abs=1e-5, nan_ok=True)
    assert saved(notebook, view, "SVG", "agreement.svg").count("<circle") == 4
    assert is_picture(saved(notebook, view, "PNG", "patches.png"))
    reviewed(notebook, PATCHES, "patch_map")


def test_an_operation_is_found_in_the_source_and_read_in_a_block(notebook):
    view = notebook.cell(SOURCE).locator(".insitu-source_browser")
    view.get_by_role("button", name="attention_interface_0", exact=True).click()
    assert_told(notebook, "browser.selected", "attention_interface_0")
    reviewed(notebook, SOURCE, "source_browser")
    rows = list(csv.reader(io.StringIO(saved(notebook, view, "CSV", "source.csv"))))
    names = told(notebook, "dir(model.transformer.h[0].attn.source)")
    assert sorted(row[1] for row in rows[1:]) == sorted(names)
    assert "  # attention_interface_0\n" in saved(notebook, view, "TXT", "source.txt")
    assert "attention_interface_0</tspan>" in saved(notebook, view, "SVG", "source.svg")
    assert is_picture(saved(notebook, view, "PNG", "source.png"))
    view.get_by_role("button", name="Go into it").click()
    inner = view.get_by_role(
        "button", name=re.compile("^scaled_dot_product_attention_0$|^torch_nn")
    )
    inner.first.click()
    path = view.locator(".chosen code").inner_text()
    assert path.startswith("model.transformer.h[0].attn.source.attention_interface_0.source.")
    told_shape = notebook.python(
        f"with model.trace(prompt):\n    out = {path}.save()\nprint(tuple(out.shape))"
    )
    assert told_shape == "(1, 4, 8, 32)\n"
    view.get_by_role("navigation").get_by_role("button").first.click()
    view.get_by_role("button", name="attention_interface_0", exact=True).wait_for()
