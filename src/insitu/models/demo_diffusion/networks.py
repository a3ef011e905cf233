"""The untrained parts of the demo's diffusion pipeline: small, and of the usual classes.

pipeline = StableDiffusionPipeline(vae=new_vae(), unet=new_unet(), text_encoder=new_text_encoder(),
    tokenizer=new_tokenizer(), scheduler=new_scheduler(), …)
"""

import json
from typing import Any

from insitu.models.demo_diffusion.shapes import COLOURS, PLACES, SHAPES, SIZE

WORDS = 16
"""Tokens of a caption, with its start and its padding."""
WIDTH = 64
"""Width of the text encoder."""


def new_tokenizer() -> Any:
    """A CLIP tokenizer to which each word of the captions is one token, others their letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    places = "".join(PLACES).split()
    words = ["a", "an", "on", "black", "small", "large", "left", "of", "above", *places]
    words += [*COLOURS, *SHAPES]
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.Whitespace()
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    trainer = trainers.BpeTrainer(
        vocab_size=1000, min_frequency=1, show_progress=False, end_of_word_suffix="</w>"
    )
    trained.train_from_iterator([" ".join((*words, *letters))] * 2, trainer)
    found = json.loads(trained.to_str())["model"]
    vocab: dict[str, int] = {}
    for token in (*letters, *(f"{letter}</w>" for letter in letters), *found["vocab"]):
        vocab.setdefault(token, len(vocab))
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocab[token] = len(vocab)
    merges = [tuple(merge) for merge in found["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=WORDS)


def new_text_encoder() -> Any:
    """CLIP's text encoder, of two layers and width 64."""
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = new_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=WORDS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=WIDTH,
    )
    return CLIPTextModel(config)


def new_vae() -> Any:
    """An autoencoder that makes a latent of `[4, 16, 16]` of an image of `[3, 32, 32]`."""
    import diffusers

    make: Any = diffusers.AutoencoderKL
    return make(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=SIZE,
    )


def new_unet() -> Any:
    """A UNet on latents that looks at the words where these have 8 × 8 places.

    The words as a whole are added to the time embedding too, and scale every block's channels:
    colours and shapes are learned several times faster than by cross-attention alone.
    """
    import diffusers

    make: Any = diffusers.UNet2DConditionModel
    return make(
        sample_size=SIZE // 2,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


def new_scheduler() -> Any:
    """DDIM on a cosine schedule that ends in pure noise, so that few steps suffice.

    Source: Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed" (2023).
    """
    import diffusers

    make: Any = diffusers.DDIMScheduler
    return make(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,  # not used with trailing steps; without it StableDiffusionPipeline warns
        clip_sample=False,
        set_alpha_to_one=True,
    )
