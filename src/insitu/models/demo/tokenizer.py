"""The demo model's tokenizer: byte-level BPE in which every word of the corpus is one token.

tokenizer = train_tokenizer()
tokenizer.tokenize("The war lasted from the year 1732")   # ..., "Ġ17", "32"
"""

import random
from collections import Counter

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from insitu.models.demo.corpus import document

END_OF_TEXT = "<|endoftext|>"
# GPT-2's own expression, but digits come in twos: a century and a year are a token each.
WORD = r" ?\p{L}+| ?\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DOCUMENTS = 60_000
RAREST = 4
"""A word is made one token when the sampled documents show it at least this often."""


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Learn the vocabulary from the corpus; the same one on every machine."""
    core = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(WORD), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=1,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(lexicon(core), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )


def lexicon(core: Tokenizer) -> list[str]:
    """Each frequent word once, with its space if it had one, so that all become tokens alike."""
    rng = random.Random("lexicon")
    counts: Counter[str] = Counter()
    for _ in range(DOCUMENTS):
        text = document(rng)
        pieces = core.pre_tokenizer.pre_tokenize_str(text)
        counts.update(text[start:end] for _, (start, end) in pieces)
    numbers = [f"{space}{n:02d}" for space in ("", " ") for n in range(100)]
    return sorted(word for word, count in counts.items() if count >= RAREST) + numbers
