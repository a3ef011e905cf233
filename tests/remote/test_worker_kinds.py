"""Kinds of models that are served: what a folder holds tells, as where they are opened by hand."""

import copy

import pytest
import tiny_diffusion
import torch
from test_jail import FOUND
from worker_runs import running

from insitu import DiffusionModel, LanguageModel, VisionLanguageModel
from insitu.errors import UsageError
from insitu.models import loading, pipeline_files, vision_language
from insitu.remote.worker import opening
from insitu.remote.worker.specs import ModelSpec, spec_of

pytestmark = pytest.mark.slow  # whole models are opened, again and again

TRUST = "team" if FOUND.landlock and FOUND.seccomp else "self"
SEES = """
import insitu
from insitu.models.demo_vision.scenes import draw
assert type(model) is insitu.VisionLanguageModel
with model.trace("<image>\\nWhat colour is the circle?", images=[draw("circle", "red", "left")]):
    model.model.multi_modal_projector.output[:] *= 2
    logits = model.lm_head.output.save()
result.write(logits.detach().numpy().tobytes())
"""
DRAWS = """
import insitu
assert type(model) is insitu.DiffusionModel
with model.trace("a red circle", seed=0):
    model.unet.mid_block.output[:] *= 2
    noise = model.unet.output[0].save()
result.write(noise.detach().numpy().tobytes())
"""


class Kept:
    """A result that keeps what is written."""

    def write(self, data):
        self.data = data


def here(source, model):
    """What the same block gives in this process."""
    result = Kept()
    exec(compile(source, "<block>", "exec"), {"model": model, "result": result, "torch": torch})
    return result.data


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("kinds")
    tiny_diffusion.stable_diffusion().save_pretrained(base / "drawing")
    return {"seeing": str(vision_language.DEMO), "drawing": str(base / "drawing")}


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(
    ("name", "source", "kind"),
    [("seeing", SEES, VisionLanguageModel), ("drawing", DRAWS, DiffusionModel)],
)
def test_a_folder_is_served_as_the_kind_it_holds(tmp_path, folders, name, source, kind, apart):
    folder = folders[name]
    if kind is VisionLanguageModel:
        want = here(source, kind(folder, dtype="float32"))
        model = ModelSpec(folder, settings={"dtype": "float32"})
    else:
        want, model = here(source, kind(folder)), folder
    with running(tmp_path, models=[model], trust=TRUST, apart=apart) as runs:
        ran = runs.job(source, model=folder, timeout_s=200)
        assert ran.phase == "COMPLETED", ran.text
        assert ran.result == want
        again = runs.job(source, model=folder)
        assert again.result == want
        about = runs.pool.models()[0].about
    assert about["kind"] == kind.__name__


def test_what_files_tell_of_a_model(folders, tmp_path, tiny_gpt2):
    assert opening.kind_of("demo", {}) == opening.kind_of("demo-encoder", {}) == "LanguageModel"
    assert opening.kind_of(folders["seeing"], {"device_map": "cpu"}) == "VisionLanguageModel"
    assert opening.kind_of(folders["drawing"], {}) == "DiffusionModel"
    assert opening.kind_of(str(pipeline_files.BUILT_IN["demo"]), {}) == "DiffusionModel"
    assert opening.kind_of(str(loading.BUILT_IN["demo"]), {}) == "LanguageModel"
    model, _ = copy.deepcopy(tiny_gpt2)
    model.save_pretrained(tmp_path / "plain")
    assert opening.kind_of(str(tmp_path / "plain"), {}) == "LanguageModel"
    assert opening.kind_of(str(tmp_path / "nothing"), {}) == "LanguageModel"
    assert type(opening.opened(spec_of(str(tmp_path / "plain")), "cpu")) is LanguageModel


def test_a_kind_that_is_named_is_taken_and_one_that_is_none_is_not(folders):
    spec = ModelSpec("seeing", source=folders["seeing"], kind="LanguageModel")
    assert type(opening.opened(spec, "cpu")) is LanguageModel
    with pytest.raises(UsageError, match="of the kind 'Poem' cannot be served"):
        ModelSpec("x", kind="Poem")
