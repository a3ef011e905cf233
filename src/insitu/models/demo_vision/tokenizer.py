"""The image-text demo's tokenizer: every word it asks or answers with is one token.

processor = new_processor()
processor(text="<image>\\nWhat colour is it?", images=[image], return_tensors="pt")

Any other text falls into bytes.
"""

import random
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from insitu.models.demo_vision.questions import WITHOUT_IMAGE, any_question
from insitu.models.demo_vision.scenes import SIZE, random_scene

END_OF_TEXT = "<|endoftext|>"
IMAGE = "<image>"
PATCH = 8
CONTEXT = 256
_WORD = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SAMPLED = 4000

CHAT = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}" + END_OF_TEXT + "{% endif %}{% endfor %}"
)
"""A question is asked as it stands; an answer begins with its space."""


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Learn the vocabulary from the questions; the same one on every machine."""
    rng = random.Random("vocabulary")
    asked = [any_question(random_scene(rng, rng.randint(1, 3)), rng) for _ in range(_SAMPLED)]
    texts = sorted({"\n" + question + answer for question, answer in (*asked, *WITHOUT_IMAGE)})
    core = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_WORD), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        min_frequency=1,
        special_tokens=[END_OF_TEXT, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def new_processor() -> Any:
    """The tokenizer with what turns a picture into pixels of -1 to 1."""
    return LlavaProcessor(
        image_processor=SiglipImageProcessorPil(
            size={"height": SIZE, "width": SIZE},
            image_mean=[0.5, 0.5, 0.5],
            image_std=[0.5, 0.5, 0.5],
        ),
        tokenizer=train_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        image_token=IMAGE,
        chat_template=CHAT,
    )
