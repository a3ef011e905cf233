"""docs/methods.md: each program gives a figure, and each figure is there."""

import re
import runpy
from pathlib import Path

import pytest

import insitu.methods

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "methods.md").read_text()
IMAGES = re.findall(r"!\[.+\]\((images/methods/\w+\.png)\)", PAGE)


def programs():
    pytest.importorskip("playwright")
    return runpy.run_path(str(ROOT / "tools" / "method_figures.py"))


def test_every_figure_of_the_page_is_there_and_every_file_on_the_page():
    there = {f"images/methods/{path.name}" for path in (ROOT / "docs/images/methods").iterdir()}
    assert set(IMAGES) == there
    assert len(IMAGES) == len(set(IMAGES))


def test_the_page_names_only_what_there_is():
    page = programs()["programs"](PAGE)
    assert {f"images/methods/{name}.png" for name in page if name} == set(IMAGES)
    text = "\n".join(page.values())
    own = set(re.findall(r"^(\w+) =", text, re.M))
    for name in set(re.findall(r"^(\w+)\(", text, re.M)) - own:
        assert name in insitu.methods.__all__, name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [Path(image).stem for image in IMAGES])
def test_the_program_of_a_figure_gives_one(name):
    tool = programs()
    page, names = tool["programs"](PAGE), {}
    exec(page[""], names)
    figure = tool["last_value"](page[name], names)
    assert figure.data
    assert figure.layout.title.text
