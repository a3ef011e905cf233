"""docs/widgets.md: its programs run, its pictures are there, and no view is left out."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from insitu import widgets
from insitu.widgets.base import Widget

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/widgets.md").read_text()
SIZE_MAX_BYTES = 90_000


def views():
    """The names of all views."""
    kinds = [getattr(widgets, name) for name in widgets.__all__]
    return [it.__name__ for it in kinds if isinstance(it, type) and issubclass(it, Widget)]


def test_every_view_has_a_section_and_a_line_in_the_list():
    assert len(views()) > 10
    for name in views():
        assert f"\n## {name}\n" in PAGE
        assert f"[{name}](#{name.lower()})" in PAGE


def test_every_picture_is_there_in_light_and_dark_and_small():
    named = re.findall(r'"(images/widgets/\w+-(?:light|dark)\.png)"', PAGE)
    there = {f"images/widgets/{it.name}" for it in (ROOT / "docs/images/widgets").glob("*.png")}
    assert set(named) == there
    assert len(named) == 2 * PAGE.count("<picture>")
    for name in named:
        assert (ROOT / "docs" / name).stat().st_size < SIZE_MAX_BYTES, name


def test_the_page_holds_the_table_of_budgets_and_no_number_of_bytes_is_over():
    table = PAGE.split("<!-- budgets")[1].split("<!-- end of budgets -->")[0]
    assert "| what | budget | measured |" in table
    rows = [row for row in table.splitlines() if " kB |" in row]
    assert len(rows) > 15
    assert not [row for row in rows if "**over**" in row]


@pytest.mark.slow
def test_its_programs_run_from_the_first_to_the_last(tmp_path):
    pytest.importorskip("diffusers")
    programs = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(programs) > 12
    told = "\n".join([*programs, "stepper.leave()", "print('to the end')"])
    run = subprocess.run(
        [sys.executable, "-W", "error::insitu.InsituWarning", "-c", told],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith("to the end\n")
