"""The demo encoder's tokenizer: cased WordPiece in which every word of the corpus is one token.

tokenizer = make_tokenizer()
tokenizer.tokenize("The Eiffel Tower is in [MASK].")   # The, Eiffel, Tower, is, in, [MASK], .
tokenizer.tokenize("1732")                             # 17, ##32
"""

import random
import re
import string
from collections import Counter

from transformers import BertTokenizer

from insitu.models.demo_encoder.corpus import sentence, text_of

SENTENCES = 60_000
RAREST = 4
"""A word is made one token when the sampled sentences show it at least this often."""
LONGEST = 128
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def make_tokenizer() -> BertTokenizer:
    """The vocabulary of the corpus; the same one on every machine."""
    return BertTokenizer(
        vocab={token: number for number, token in enumerate(vocabulary())},
        do_lower_case=False,
        model_max_length=LONGEST,
    )


def vocabulary() -> list[str]:
    """Special tokens, characters to spell unknown words with, numbers, and words."""
    characters = [c for c in string.printable if not c.isspace()]
    numbers = [f"{n:02d}" for n in range(100)]
    pieces = [*characters, *numbers]
    return list(dict.fromkeys((*SPECIAL, *pieces, *(f"##{piece}" for piece in pieces), *lexicon())))


def lexicon() -> list[str]:
    """Each frequent word of the corpus once, in the order of the alphabet."""
    rng = random.Random("lexicon")
    counts: Counter[str] = Counter()
    for _ in range(SENTENCES):
        counts.update(re.findall(r"[^\W\d]+", text_of(sentence(rng))))
    return sorted(word for word, count in counts.items() if count >= RAREST)
