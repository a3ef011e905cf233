"""Diffusion pipelines of every kind, tiny and random, built from configurations.

pipe = stable_diffusion()       # UNet, CLIP, autoencoder: guided by doubling
pipe = unconditional()          # a UNet alone
pipe = dit()                    # a transformer on class labels
pipe = flux()                   # a transformer on packed latents, not doubled
"""

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from insitu.models.demo_diffusion.networks import new_tokenizer

CIRCLE = "a red circle"
DRAWN = {"num_inference_steps": 2, "output_type": "pt", "seed": 0}
"""A prompt, and settings with which two runs draw the same numbers."""


def clip(width=16, words=16):
    """A text encoder of one layer, and a tokenizer."""
    tokenizer = new_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=width,
        num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=words,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, projection_dim=width,
    )  # fmt: skip
    return CLIPTextModel(config).eval(), tokenizer


def vae(channels=4, **settings):
    """An autoencoder that halves an image."""
    return AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, latent_channels=channels,
        norm_num_groups=4, mid_block_add_attention=False, sample_size=16, **settings,
    ).eval()  # fmt: skip


def stable_diffusion(kind=StableDiffusionPipeline):
    """The usual pipeline: latents of `[4, 8, 8]`, words of width 16."""
    torch.manual_seed(0)
    encoder, tokenizer = clip()
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1,
        block_out_channels=(8, 16), norm_num_groups=4, cross_attention_dim=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=2,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    pipe = kind(
        vae=vae(), text_encoder=encoder, tokenizer=tokenizer, unet=unet.eval(),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return still(pipe)


def image_to_image():
    """The same parts, with an image to begin from."""
    return stable_diffusion(StableDiffusionImg2ImgPipeline)


def unconditional():
    """A UNet that draws without being told what."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1,
        block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return still(DDPMPipeline(unet=unet.eval(), scheduler=DDPMScheduler()))


def dit():
    """A transformer on patches, for class labels 0 … 1000 of which 1000 is none."""
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=8, num_layers=2,
        attention_head_dim=4, num_attention_heads=2, num_embeds_ada_norm=1000,
    ).eval()  # fmt: skip
    with torch.no_grad():  # its modulation begins as zero: every block would do nothing
        for weight in transformer.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    names = {0: "tench, Tinca tinca", 7: "cock", 3: "great white shark"}
    return still(
        DiTPipeline(transformer=transformer, vae=vae(), scheduler=DDIMScheduler(), id2label=names)
    )


def flux():
    """A transformer that is told how strongly to be guided instead of being called twice."""
    torch.manual_seed(0)
    encoder, tokenizer = clip()
    t5 = T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    ).eval()  # fmt: skip
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    ).eval()  # fmt: skip
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(scaling_factor=0.5, shift_factor=0.1),
        text_encoder=encoder, tokenizer=tokenizer, text_encoder_2=t5, tokenizer_2=tokenizer,
        transformer=transformer,
    )  # fmt: skip
    return still(pipe)


def still(pipe):
    """Without a progress bar, and with weights that need no gradients."""
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe
