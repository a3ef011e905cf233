"""Opening pipelines: folders, loaded ones, and those whose weights come later."""

import json
import shutil
import subprocess
import sys
import textwrap

import pytest
import tiny_diffusion
import torch
from tiny_diffusion import CIRCLE, DRAWN

import insitu
from insitu.models.diffusion import DiffusionModel


def test_a_folder_is_opened_quietly_and_draws_the_same(pipe_folder, expected, capsys):
    model = DiffusionModel(pipe_folder)
    assert torch.equal(model.generate(CIRCLE, **DRAWN).images, expected)
    assert not any(part.training for part in model._module.modules())
    assert "Loading" not in capsys.readouterr().err
    half = DiffusionModel(str(pipe_folder), dtype=torch.bfloat16)
    assert half.unet.dtype is half.vae.dtype is torch.bfloat16
    assert half.generate(CIRCLE, **DRAWN).images.isfinite().all()


def test_weights_are_read_when_they_are_first_needed(pipe_folder, expected):
    model = DiffusionModel(pipe_folder, dispatch=False)
    middle = model.unet.mid_block
    assert {part.device.type for part in model._module.parameters()} == {"meta"}
    assert "(unet): UNet2DConditionModel" in repr(model)
    with model.scan(CIRCLE):
        assert middle.output.shape == (2, 16, 4, 4)
        assert model.vae.decoder.output.shape == (1, 3, 16, 16)
    with model.edit() as edited:
        model.unet.mid_block.output[:] = 0
    with pytest.raises(insitu.UsageError):
        model.generate(CIRCLE, num_inference_steps=0)
    assert {part.device.type for part in model._module.parameters()} == {"meta"}
    with model.generate(CIRCLE, **DRAWN) as tracer:
        kept = [middle.output for _ in tracer.iter[:]]
        images = tracer.result.images
    assert torch.equal(images, expected)
    assert len(kept) == 2
    assert {part.device.type for part in model._module.parameters()} == {"cpu"}
    assert not torch.equal(edited.generate(CIRCLE, **DRAWN).images, expected)
    assert torch.equal(model.generate(CIRCLE, **DRAWN).images, expected)


def test_weights_can_be_asked_for(pipe_folder, expected):
    model = DiffusionModel(pipe_folder, dispatch=False)
    assert model.dispatch() is model
    assert model.unet.device.type == "cpu"
    assert torch.equal(model(CIRCLE, **DRAWN).images, expected)
    shown = DiffusionModel(pipe_folder, dispatch=False).decode(torch.zeros(1, 4, 8, 8), "pt")
    assert shown.shape == (1, 3, 16, 16)


@pytest.mark.parametrize("kind", ["unconditional", "dit", "flux"])
def test_every_kind_of_pipeline_can_wait_for_its_weights(tmp_path, kind):
    pipe = getattr(tiny_diffusion, kind)()
    pipe.save_pretrained(tmp_path)
    given, more = {
        "unconditional": ((), {}),
        "dit": ((3,), {}),
        "flux": ((CIRCLE,), {"height": 16, "width": 16, "max_sequence_length": 8}),
    }[kind]
    model = DiffusionModel(tmp_path, dispatch=False)
    with model.scan(*given, **more):
        shape = model._step_node.output[0].shape
    images = model.generate(*given, **more, **DRAWN).images
    again = DiffusionModel(pipe)
    torch.testing.assert_close(images, again.generate(*given, **more, **DRAWN).images)
    with again.trace(*given, **more):
        assert again._step_node.output[0].shape == shape


def test_what_is_no_pipeline_is_refused(tmp_path, pipe_folder):
    with pytest.raises(insitu.ModelNotFoundError, match="no such folder"):
        DiffusionModel("./nowhere")
    with pytest.raises(insitu.ModelNotFoundError, match=r"holds no model_index\.json"):
        DiffusionModel(tmp_path)
    with pytest.raises(insitu.ModelNotFoundError, match="it holds one model"):
        DiffusionModel(pipe_folder / "unet")
    with pytest.raises(insitu.ModelNotFoundError, match="somebody/nothing"):
        DiffusionModel("somebody/nothing")
    with pytest.raises(insitu.InputTypeError, match="NNsight"):
        DiffusionModel(torch.nn.Linear(1, 1))
    with pytest.raises(insitu.InputTypeError, match="not int"):
        DiffusionModel(3)


@pytest.mark.parametrize("dispatch", [True, False])
def test_a_folder_with_a_part_missing_is_refused_whole(pipe_folder, tmp_path, dispatch):
    broken = tmp_path / "broken"
    shutil.copytree(pipe_folder, broken)
    shutil.rmtree(broken / "vae")
    with pytest.raises(insitu.ModelNotFoundError, match="vae"):
        DiffusionModel(broken, dispatch=dispatch)


def test_a_component_can_be_given(pipe_folder):
    unet = tiny_diffusion.stable_diffusion().unet
    model = DiffusionModel(pipe_folder, unet=unet)
    assert model.unet._module is unet


def test_a_pipeline_without_a_denoiser_is_refused():
    class Pipeline:
        def __init__(self):
            self.vae = torch.nn.Linear(1, 1)
            self.components = {"vae": self.vae}

        def __call__(self):
            pass

    with pytest.raises(insitu.UsageError, match="no component that removes noise"):
        DiffusionModel(Pipeline())


def test_diffusers_is_not_imported_before_it_is_needed():
    program = """
        import sys
        import insitu
        import insitu.models.diffusion
        assert "diffusers" not in sys.modules
        assert "transformers" not in sys.modules
        sys.modules["diffusers"] = None
        try:
            insitu.models.diffusion.DiffusionModel("demo")
        except insitu.MissingPackageError as error:
            print(error.next)
    """
    shown = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True
    ).stdout
    assert "pip install" in shown


def test_an_index_that_is_no_index_is_refused(tmp_path):
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(insitu.ModelNotFoundError):
        DiffusionModel(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "NoPipeline"}))
    with pytest.raises(insitu.ModelNotFoundError):
        DiffusionModel(tmp_path)
