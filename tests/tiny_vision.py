"""Tiny random image-text models with their processors, built from configs: no hub, no files.

model, processor = llava()          # one row of the tower per image
model, processor = qwen2_vl()       # one row per patch of all images
model, processor, placeholder, block = OTHERS["gemma3"]()
"""

import functools

import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    SiglipVisionConfig,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from insitu.models.processors import without_videos

TEXT = "Describe this image. What is on the left? A red circle, a blue square. Hello world. "
CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for p in m['content'] %}{% if p['type'] == 'image' %}IMAGE{% else %}"
    "{{ p['text'] }}{% endif %}{% endfor %}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def tokenizer(special, **named):
    core = Tokenizer(tokenizer_models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|end|>", *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([TEXT] * 5, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|end|>",
        eos_token="<|end|>",
        pad_token="<|end|>",
        extra_special_tokens=named,
    )


def spread(model):
    """Weights so far apart that a change inside shows at the end."""
    model.eval().requires_grad_(False)
    for weight in model.parameters():
        weight.mul_(4 if weight.dim() > 1 else 1)
    model.generation_config.update(eos_token_id=None, pad_token_id=0, do_sample=False)
    return model


@functools.cache
def llava():
    """A SigLIP tower of two layers on 16 x 16 pixels, a Llama of three: `(model, processor)`."""
    words = tokenizer(["<image>"], image_token="<image>")
    torch.manual_seed(0)
    vision = SiglipVisionConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2,
        image_size=16, patch_size=8, vision_use_head=False,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=words.image_token_id,
        vision_feature_layer=-1, vision_feature_select_strategy="full", image_seq_length=4,
    )  # fmt: skip
    pixels = SiglipImageProcessorPil(size={"height": 16, "width": 16})
    processor = LlavaProcessor(
        image_processor=pixels, tokenizer=words, patch_size=8, image_token="<image>",
        vision_feature_select_strategy="full", chat_template=CHAT.replace("IMAGE", "<image>"),
    )  # fmt: skip
    return spread(LlavaForConditionalGeneration(config)), processor


@functools.cache
def qwen2_vl():
    """A tower of two layers that takes images of any size, a Qwen2 of three."""
    special = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    words = tokenizer(special)
    ids = {name.strip("<|>"): words.convert_tokens_to_ids(name) for name in special}
    torch.manual_seed(0)
    config = Qwen2VLConfig(
        vision_config={
            "depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 2,
            "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
        text_config={
            "vocab_size": len(words), "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 0,
            "pad_token_id": 0,
            "rope_parameters": {
                "rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0
            },
        },
        image_token_id=ids["image_pad"], video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"], vision_end_token_id=ids["vision_end"],
    )  # fmt: skip
    pixels = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2,
        size={"shortest_edge": 64, "longest_edge": 4096},
    )  # fmt: skip
    around = "<|vision_start|><|image_pad|><|vision_end|>"
    processor = without_videos(Qwen2VLProcessor)(
        image_processor=pixels, tokenizer=words, chat_template=CHAT.replace("IMAGE", around)
    )
    return spread(Qwen2VLForConditionalGeneration(config)), processor


def photo(seed, width=16, height=16):
    """A picture of noise."""
    noise = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height, width, 3), generator=noise, dtype=torch.uint8)
    return Image.frombytes("RGB", (width, height), pixels.numpy().tobytes())


# Further families: each `(model, processor, placeholder, a block of the tower)` -----------------

DECODER = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 0,
    "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
TOWER = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 16,
}  # fmt: skip
IN_QWEN = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
PINPOINTS = [[16, 32], [32, 16], [32, 32]]


def _qwen(kind, vision, **rope):
    words = tokenizer(IN_QWEN)
    image, video, start, end = (words.convert_tokens_to_ids(name) for name in IN_QWEN)
    vision = {
        "depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48,
        "out_hidden_size": 32, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
        **vision,
    }  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0, **rope}
    config = getattr(transformers, f"{kind}Config")(
        vision_config=vision,
        text_config={"vocab_size": len(words), **DECODER, "rope_parameters": rope},
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    size = {"shortest_edge": 64, "longest_edge": 4096}
    pixels = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, temporal_patch_size=2, size=size)
    processor = without_videos(getattr(transformers, f"{kind}Processor"))(pixels, words)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    return (
        spread(model),
        processor,
        "".join((IN_QWEN[2], IN_QWEN[0], IN_QWEN[3])),
        "visual.blocks.0",
    )


def qwen2_5_vl():
    return _qwen("Qwen2_5_VL", {"window_size": 16, "fullatt_block_indexes": [1]})


def qwen3_vl():
    vision = {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    return _qwen("Qwen3VL", vision, mrope_interleaved=True)


def gemma3():
    words = tokenizer(
        ["<boi>", "<eoi>", "<soft>"], image_token="<soft>", boi_token="<boi>", eoi_token="<eoi>"
    )
    config = transformers.Gemma3Config(
        vision_config={**TOWER, "patch_size": 4, "vision_use_head": False},
        text_config={"vocab_size": len(words), **DECODER, "head_dim": 8},
        mm_tokens_per_image=4,
        boi_token_index=words.boi_token_id,
        eoi_token_index=words.eoi_token_id,
        image_token_index=words.image_token_id,
    )
    pixels = Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    processor = transformers.Gemma3Processor(pixels, words, image_seq_length=4)
    model = transformers.Gemma3ForConditionalGeneration(config)
    return spread(model), processor, "<boi>", "vision_tower.encoder.layers.0"


def llava_next():
    words = tokenizer(["<image>"], image_token="<image>")
    config = transformers.LlavaNextConfig(
        vision_config={"model_type": "clip_vision_model", **TOWER, "patch_size": 8},
        text_config={"model_type": "llama", "vocab_size": len(words), **DECODER},
        image_token_index=words.image_token_id,
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-1,
    )
    pixels = LlavaNextImageProcessorPil(
        size={"shortest_edge": 16},
        crop_size={"height": 16, "width": 16},
        image_grid_pinpoints=PINPOINTS,
    )
    processor = transformers.LlavaNextProcessor(
        pixels, words, patch_size=8, vision_feature_select_strategy="default",
        image_token="<image>", num_additional_image_tokens=1,
    )  # fmt: skip
    model = transformers.LlavaNextForConditionalGeneration(config)
    return spread(model), processor, "<image>", "vision_tower.encoder.layers.0"


def idefics3():
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    special = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    words = tokenizer([*special, *tiles])
    config = transformers.Idefics3Config(
        vision_config={**TOWER, "patch_size": 4},
        text_config={"model_type": "llama", "vocab_size": len(words), **DECODER},
        scale_factor=2,
        pad_token_id=0,
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )
    pixels = Idefics3ImageProcessorPil(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 16}
    )
    processor = transformers.Idefics3Processor(pixels, words, image_seq_len=4)
    model = transformers.Idefics3ForConditionalGeneration(config)
    return spread(model), processor, "<image>", "vision_model.encoder.layers.0"


OTHERS = {make.__name__: make for make in (qwen2_5_vl, qwen3_vl, gemma3, llava_next, idefics3)}
