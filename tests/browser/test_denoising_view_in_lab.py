"""An image drawn in a real JupyterLab: its steps come as pictures, and are scrubbed."""

from functools import partial
from pathlib import Path

import pytest
from widget_pages import assert_prints, eventually, look, open_cells, reviewed

pytestmark = pytest.mark.slow

CELLS = [
    f"import sys, insitu\nsys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
    "import tiny_diffusion\n"
    "from insitu.models.diffusion import DiffusionModel\n"
    "from insitu.widgets import watch_denoising\n"
    "sd = DiffusionModel(tiny_diffusion.stable_diffusion())",
    "view = watch_denoising(sd, 'a red circle', num_inference_steps=6, seed=0)",
    "print(insitu.selection.step, len(view.steps), view.state['name'])",
]


def test_pictures_come_and_are_scrubbed(lab):
    notebook = open_cells(lab, CELLS)
    view = notebook.page.locator(".insitu-denoising_view")
    view.get_by_role("option").nth(5).wait_for()
    look(notebook, 1)
    assert view.locator(".maps canvas").count() == 3
    view.get_by_role("option").nth(4).click()
    notebook.page.keyboard.press("ArrowLeft")
    view.get_by_text("step 3 · timestep").wait_for()
    loaded = "images => images.every(image => image.naturalWidth === 16)"
    read = partial(view.locator(".strip img").evaluate_all, loaded)
    assert eventually(notebook, read, True)
    assert_prints(notebook, 2, "3 6 done\n")
    reviewed(notebook, 1, "denoising_view")
    assert notebook.said == []
    assert lab.outside == []
