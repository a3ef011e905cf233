"""Train the demo's diffusion pipeline from scratch on drawn shapes: 25 minutes on one core.

    python -m insitu.models.demo_diffusion.train --out demo-diffusion
    python -m insitu.models.demo_diffusion.train --out demo-diffusion --resume

`--out` receives `checkpoint/` (the pipeline's folder that is committed next to this file),
`training.pt` (for `--resume`) and `loss.csv`. First the autoencoder learns images, then the UNet
and the text encoder learn to denoise what the autoencoder makes of them.
"""

import argparse
import copy
import pathlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from insitu.models.demo_diffusion.networks import (
    new_scheduler,
    new_text_encoder,
    new_tokenizer,
    new_unet,
    new_vae,
)
from insitu.models.demo_diffusion.shapes import draw, random_scene
from insitu.models.training import (
    SAVE_EVERY,
    load_state,
    save_state,
    take_step,
    warmed_cosine,
    warmed_plateau,
    write_losses,
)

UNCONDITIONAL = 0.12
"""Share of images whose caption is dropped, so that guidance has something to move away from."""
AVERAGED = 0.996
"""How much of the running average of the weights each step keeps."""


@dataclass(frozen=True)
class Recipe:
    """What a run is made of; two runs of one recipe give the same weights.

    train(Recipe(steps=500), pathlib.Path("demo-diffusion"))
    """

    vae_steps: int = 2200
    steps: int = 4800
    vae_batch: int = 8
    batch: int = 32
    seed: int = 0
    vae_rate: float = 3e-3
    rate: float = 2e-3
    warmup_steps: int = 100


class Networks(nn.Module):
    """What is trained, the average that is kept, and the fixed parts."""

    def __init__(self) -> None:
        super().__init__()
        self.vae = new_vae()
        self.unet = new_unet()
        self.text_encoder = new_text_encoder()
        self.averaged = nn.ModuleDict(
            {"unet": copy.deepcopy(self.unet), "text_encoder": copy.deepcopy(self.text_encoder)}
        )
        self.register_buffer("latent_scale", torch.ones(()))
        self.tokenizer = new_tokenizer()
        self.scheduler = new_scheduler()


def batch_of(
    name: str, step: int, seed: int, rows: int
) -> tuple[Tensor, list[str], torch.Generator]:
    """Images and captions of a step, and its noise: they depend on seed and step alone."""
    rng = random.Random(f"{seed}-{name}-{step}")
    scenes = [random_scene(rng) for _ in range(rows)]
    captions = ["" if rng.random() < UNCONDITIONAL else scene.caption for scene in scenes]
    noise = torch.Generator().manual_seed(rng.getrandbits(60))
    return torch.stack([draw(scene) for scene in scenes]), captions, noise


def vae_loss(networks: Networks, images: Tensor, noise: torch.Generator) -> Tensor:
    """How far images are from what the autoencoder makes of them."""
    latents = networks.vae.encode(images).latent_dist
    restored = networks.vae.decode(latents.sample(noise)).sample
    error = (restored - images).abs().mean() + (restored - images).square().mean()
    loss: Tensor = error + 1e-4 * latents.kl().mean() / latents.mean[0].numel()
    return loss


def denoising_loss(
    networks: Networks, images: Tensor, captions: list[str], noise: torch.Generator
) -> Tensor:
    """Mean squared error of the velocity at random noise levels.

    Source: Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models"
    (2022), section 4 and appendix D: what is predicted is a mixture of noise and image, which stays
    well posed where the input is noise alone.
    """
    with torch.no_grad():
        latents = networks.vae.encode(images).latent_dist.mode() * networks.latent_scale
    drawn = torch.randn(latents.shape, generator=noise)
    # What is drawn is decided where noise is high, for a flat shape shows through much of it.
    levels = (1000 * torch.rand(len(images), generator=noise) ** (2 / 3)).long().clamp(max=999)
    noisy = networks.scheduler.add_noise(latents, drawn, levels)
    wanted = networks.scheduler.get_velocity(latents, drawn, levels)
    ids = networks.tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
    words = networks.text_encoder(ids)[0]
    return functional.mse_loss(networks.unet(noisy, levels, words).sample, wanted)


def fit_vae(
    networks: Networks, optimizer: torch.optim.Optimizer, recipe: Recipe, start: int
) -> Iterator[float]:
    """Train the autoencoder, and measure how large its latents are."""
    for step in range(start, recipe.vae_steps):
        images, _, noise = batch_of("vae", step, recipe.seed, recipe.vae_batch)
        loss = vae_loss(networks, images, noise)
        now = warmed_cosine(recipe.vae_rate, step, recipe.vae_steps, recipe.warmup_steps)
        take_step(optimizer, loss, networks.vae.parameters(), now)
        if step + 1 == recipe.vae_steps:
            with torch.no_grad():
                latents = networks.vae.encode(images).latent_dist.mode()
                networks.latent_scale.copy_(1 / latents.std())  # type: ignore[operator]
        yield loss.item()


def fit_unet(
    networks: Networks, optimizer: torch.optim.Optimizer, recipe: Recipe, start: int
) -> Iterator[float]:
    """Train the UNet with the text encoder, averaging their weights."""
    trained = nn.ModuleDict({"unet": networks.unet, "text_encoder": networks.text_encoder})
    for step in range(start, recipe.steps):
        loss = denoising_loss(networks, *batch_of("unet", step, recipe.seed, recipe.batch))
        now = warmed_plateau(recipe.rate, step, recipe.steps, recipe.warmup_steps)
        take_step(optimizer, loss, trained.parameters(), now)
        kept = min(AVERAGED, (step + 1) / (step + 10))
        with torch.no_grad():
            averages: list[Tensor] = list(networks.averaged.parameters())
            weights: list[Tensor] = list(trained.parameters())
            torch._foreach_lerp_(averages, weights, 1 - kept)
        yield loss.item()


def train(recipe: Recipe, out: pathlib.Path, *, resume: bool = False) -> pathlib.Path:
    """Train, saving now and then, and return the folder of the finished pipeline.

    folder = train(Recipe(steps=500), pathlib.Path("demo-diffusion"))
    DiffusionModel(folder)
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    networks = Networks()
    trained = [*networks.unet.parameters(), *networks.text_encoder.parameters()]
    optimizers = {
        "vae": torch.optim.AdamW(networks.vae.parameters(), betas=(0.9, 0.98), weight_decay=0.0),
        "unet": torch.optim.AdamW(trained, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
    }
    parts = {"networks": networks, **{f"{name}_optimizer": one for name, one in optimizers.items()}}
    losses: dict[str, list[float]] = {"vae": [], "unet": []}
    if resume:
        losses = load_state(out / "training.pt", parts, recipe)
    for name, fit, total in (
        ("vae", fit_vae, recipe.vae_steps),
        ("unet", fit_unet, recipe.steps),
    ):
        done = losses[name]
        steps = fit(networks, optimizers[name], recipe, len(done))
        bar = tqdm(steps, desc=name, total=total, initial=len(done), mininterval=5.0)
        for loss in bar:
            done.append(loss)
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            if len(done) % SAVE_EVERY == 0 or len(done) == total:
                save_state(out / "training.pt", parts, recipe, losses)
                export(networks, out / "checkpoint")
                rows = ((n, i, loss) for n, them in losses.items() for i, loss in enumerate(them))
                write_losses(out / "loss.csv", ("network", "step", "loss"), rows, digits=6)
    return out / "checkpoint"


def export(networks: Networks, folder: pathlib.Path) -> None:
    """Write the pipeline's folder: float16 weights, configurations and tokenizer."""
    import diffusers

    make: Any = diffusers.StableDiffusionPipeline
    scale: Any = networks.latent_scale
    vae = copy.deepcopy(networks.vae)
    vae.register_to_config(scaling_factor=round(float(scale), 5))
    pipeline = make(
        vae=vae.half(),
        text_encoder=copy.deepcopy(networks.averaged["text_encoder"]).half(),
        tokenizer=networks.tokenizer,
        unet=copy.deepcopy(networks.averaged["unet"]).half(),
        scheduler=networks.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train the demo's diffusion pipeline.")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("demo-diffusion"))
    parser.add_argument("--vae-steps", type=int, default=Recipe.vae_steps)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    recipe = Recipe(vae_steps=asked.vae_steps, steps=asked.steps, seed=asked.seed)
    folder = train(recipe, asked.out, resume=asked.resume)
    print(f"{folder} holds the pipeline.")


if __name__ == "__main__":
    main()
