"""Components of a pipeline that wait for their weights; the oracle is one that has them all."""

import copy
import shutil
import threading

import pytest
import tiny_diffusion
import torch
from safetensors.torch import load_file, save_file
from tiny_diffusion import CIRCLE, DRAWN

import insitu
from insitu.engine import fakes
from insitu.models import awaited, meta, pipeline_files, pipelines
from insitu.models.diffusion import DiffusionModel


def waits_for(model, part):
    """Whether all of a component is on `meta`."""
    kinds = {value.device.type for value in model._module._modules[part].parameters()}
    assert len(kinds) == 1
    return kinds == {"meta"}


@pytest.fixture
def waiting(pipe_folder):
    return DiffusionModel(pipe_folder, dispatch=False)


def test_a_run_reads_the_components_it_comes_to_and_no_others(waiting, pipe_folder, expected):
    plain = DiffusionModel(pipe_folder)
    assert waiting.waiting == ("vae", "text_encoder", "unet")
    with waiting.trace(CIRCLE) as tracer:
        words = waiting.text_encoder.output[0]
        tracer.stop()
    assert waiting.waiting == ("vae", "unet")
    assert waits_for(waiting, "unet")
    assert not waits_for(waiting, "text_encoder")
    with plain.trace(CIRCLE):
        assert torch.equal(plain.text_encoder.output[0], words)
    latent = DRAWN | {"output_type": "latent"}
    latents = waiting.generate(CIRCLE, **latent).images
    assert torch.equal(latents, plain.generate(CIRCLE, **latent).images)
    assert waiting.waiting == ("vae",)
    assert waits_for(waiting, "vae")
    assert torch.equal(waiting.decode(latents, "pt"), expected)
    assert waiting.waiting == ()
    assert torch.equal(waiting.generate(CIRCLE, **DRAWN).images, expected)


def test_a_run_from_embeddings_reads_no_text_encoder(waiting, pipe_folder):
    torch.manual_seed(1)
    words = {
        "prompt_embeds": torch.randn(1, 16, 16),
        "negative_prompt_embeds": torch.zeros(1, 16, 16),
    }
    drawn = DiffusionModel(pipe_folder).generate(**words, **DRAWN).images
    assert torch.equal(waiting.generate(**words, **DRAWN).images, drawn)
    assert waiting.waiting == ("text_encoder",)


def test_what_has_been_read_is_what_the_whole_pipeline_has(waiting, pipe_folder):
    plain = DiffusionModel(pipe_folder)
    modules = dict(waiting._module.named_modules())
    waiting.unet.requires_grad_(False)
    waiting.dispatch()
    theirs = plain._module.state_dict()
    ours = waiting._module.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    buffers = dict(plain._module.named_buffers())  # those that no file has, too
    assert buffers
    assert all(torch.equal(value, buffers[name]) for name, value in waiting._module.named_buffers())
    assert dict(waiting._module.named_modules()) == modules
    assert [type(one) for one in waiting._module.modules()] == [
        type(one) for one in plain._module.modules()
    ]
    assert not any(value.requires_grad for value in waiting.unet.parameters())
    assert all(value.requires_grad for value in waiting.vae.parameters())
    stores = {type(one._parameters) for one in waiting._module.modules()}
    assert stores == {dict}


def test_half_precision_waits_in_half_precision(pipe_folder):
    model = DiffusionModel(pipe_folder, dispatch=False, torch_dtype=torch.bfloat16)
    assert model.unet.dtype is model.text_encoder.dtype is torch.bfloat16
    half = DiffusionModel(pipe_folder, dtype=torch.bfloat16)
    images = model.generate(CIRCLE, **DRAWN).images
    assert torch.equal(images, half.generate(CIRCLE, **DRAWN).images)


def test_a_scan_works_where_some_have_been_read_and_some_not(waiting):
    waiting.dispatch("text_encoder")
    with waiting.scan([CIRCLE, CIRCLE]):
        words = waiting.text_encoder.output[0].shape
        assert waiting.unet.output[0].shape == (4, 4, 8, 8)
        assert waiting.vae.decoder.output.shape == (2, 3, 16, 16)
    assert words == (2, 16, 16)
    assert waiting.waiting == ("vae", "unet")
    with waiting.trace(CIRCLE, validate=True) as tracer:
        waiting.text_encoder.output[0]
        tracer.stop()
    assert waiting.waiting == ("vae", "unet")


def test_showing_and_counting_read_nothing(waiting):
    repr(waiting)
    repr(waiting.pipeline.unet)
    assert waiting.unet.dtype is torch.float32
    assert waiting.pipeline.device.type == "cpu"
    assert sum(value.numel() for value in waiting.unet.parameters()) > 1000
    assert len(waiting.waiting) == 3


def test_a_weight_that_is_asked_for_is_read(waiting, pipe_folder):
    plain = DiffusionModel(pipe_folder)
    assert torch.equal(waiting.unet.conv_in.weight, plain.unet.conv_in.weight)
    assert waiting.waiting == ("vae", "text_encoder")
    copied = copy.deepcopy(waiting.pipeline.vae)
    assert {value.device.type for value in copied.parameters()} == {"cpu"}
    assert waiting.waiting == ("text_encoder",)
    waiting.text_encoder.to(torch.float64)
    assert waiting.waiting == ()
    assert waiting.text_encoder.dtype is torch.float64


def test_the_bare_pipeline_reads_its_components_too(waiting, expected):
    waiting.pipeline.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    drawn = waiting.pipeline(CIRCLE, **{**DRAWN, "seed": None} | {"generator": noise})
    assert torch.equal(drawn.images, expected)


def test_components_can_be_asked_for_by_name(waiting):
    waiting.dispatch("unet", "vae")
    assert waiting.waiting == ("text_encoder",)
    with waiting.edit() as twin:
        waiting.unet.output[0][:] = 0
    twin.dispatch("text_encoder", "unet")
    assert waiting.waiting == twin.waiting == ()
    with pytest.raises(insitu.UsageError, match="did you mean 'unet'"):
        waiting.dispatch("umet")


@pytest.mark.parametrize("how", ["cut", "gone", "of another shape"])
@pytest.mark.parametrize("part", ["text_encoder", "unet"])
def test_a_file_that_fails_leaves_its_component_waiting(pipe_folder, tmp_path, expected, part, how):
    broken = tmp_path / "broken"
    shutil.copytree(pipe_folder, broken)
    file = next((broken / part).glob("*.safetensors"))
    good = file.read_bytes()
    weights = {name: value.clone() for name, value in load_file(file).items()}
    file.unlink()
    if how == "cut":
        file.write_bytes(good[: len(good) // 2])
    elif how == "of another shape":
        name = next(name for name, value in weights.items() if value.dim() == 2)
        save_file(weights | {name: torch.zeros(3, 3)}, file, metadata={"format": "pt"})
    model = DiffusionModel(broken, dispatch=False)
    for attempt in (lambda: model.generate(CIRCLE, **DRAWN).images, lambda: model.dispatch(part)):
        with pytest.raises(insitu.ModelNotFoundError, match="broken"):
            attempt()
        assert part in model.waiting
        assert waits_for(model, part)
    file.write_bytes(good)
    assert torch.equal(model.generate(CIRCLE, **DRAWN).images, expected)


def test_memory_that_is_not_there_leaves_a_component_waiting(waiting, monkeypatch):
    def no_memory(*args, **kwargs):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(pipelines, "_read", no_memory)
        with pytest.raises(insitu.ModelMemoryError, match="/unet"):
            waiting.dispatch("unet")
        with pytest.raises(insitu.ModelMemoryError, match="tiny"):
            DiffusionModel(waiting._awaited._name)
    assert waits_for(waiting, "unet")
    waiting.dispatch("unet")
    assert not waits_for(waiting, "unet")


def test_a_component_that_was_changed_meanwhile_is_not_filled(waiting):
    waiting.pipeline.unet.conv_in = torch.nn.Identity()
    with pytest.raises(insitu.UsageError, match="conv_in"):
        waiting.dispatch("unet")
    assert waits_for(waiting, "unet")


def test_a_component_that_is_given_does_not_wait(pipe_folder):
    unet = tiny_diffusion.stable_diffusion().unet
    model = DiffusionModel(pipe_folder, dispatch=False, unet=unet, safety_checker=None)
    assert model.unet._module is unet
    assert model.waiting == ("vae", "text_encoder")
    model.dispatch()
    assert model.unet._module is unet


def test_a_pipeline_with_a_device_map_is_read_as_a_whole(pipe_folder, expected):
    model = DiffusionModel(pipe_folder, dispatch=False, device_map="balanced")
    assert model.waiting == ("vae", "text_encoder", "unet")
    assert torch.equal(model.generate(CIRCLE, **DRAWN).images, expected)
    assert model.waiting == ()


def test_tensors_that_are_no_parameters_come_too():
    class Turned(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.turns = torch.arange(3.0)
            self.weight = torch.nn.Parameter(torch.ones(3))

    with torch.device("meta"):
        empty = Turned()
    meta.fill("part", empty, Turned())
    assert torch.equal(empty.turns, torch.arange(3.0))
    assert torch.equal(empty.weight, torch.ones(3))


def test_a_scan_has_mere_attributes_where_the_weights_will_be(waiting):
    part = waiting.pipeline.unet.conv_in
    part.turns = held = torch.empty(2, 3, device="meta")
    with fakes.fake_tensors(waiting._module):
        awaited.place_attributes(waiting.pipeline)
        seen = part.turns.device.type, part.weight.device.type, part.turns.shape
    assert seen == ("cpu", "cpu", (2, 3))
    assert part.turns is held
    assert part._parameters["bias"] is not None
    assert waiting.waiting == ("vae", "text_encoder")  # outside a scan a look is a need


def test_two_threads_read_a_component_once(waiting, monkeypatch):
    read, times = pipelines.component, []
    monkeypatch.setattr(
        pipelines, "component", lambda *given: (times.append(given[2]), read(*given))[1]
    )
    threads = [threading.Thread(target=waiting.dispatch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(times) == ["text_encoder", "unet", "vae"]


def test_large_components_have_a_bar_and_small_ones_none(waiting, monkeypatch, capsys):
    waiting.dispatch("vae")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(awaited, "_BARE_BYTES", 0)
    waiting.dispatch()
    shown = capsys.readouterr().err
    assert "reading text_encoder, unet" in shown
    assert "Loading" not in shown


def test_the_size_of_a_component_is_that_of_the_variant_that_is_read(tmp_path):
    for name, size in {"model": 4, "model.fp16": 2, "model-00001-of-00002": 1}.items():
        (tmp_path / f"{name}.safetensors").write_bytes(bytes(size))
    assert pipeline_files.size_of(tmp_path, None) == 5
    assert pipeline_files.size_of(tmp_path, "fp16") == 2
    assert pipeline_files.size_of(tmp_path / "nowhere", None) == 0
