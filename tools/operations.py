"""Write down what the operation names of common attention forwards stand for.

python tools/operations.py            # writes src/insitu/engine/source/moved.json
python tools/operations.py --check    # exit 1 if what is installed differs from it

Run it when constraints.txt moves to another transformers. The names of the version before then give
"moved to …" where they moved, instead of another operation's value.
"""

import argparse
import importlib
import json
import sys
from functools import reduce
from inspect import unwrap
from pathlib import Path

from insitu.engine.source.kept import plan_of
from insitu.engine.source.moved import fingerprints, key_of, text_mark

PACKAGE = "transformers"
MODELS = {
    "gpt2": ("GPT2Attention.forward", "GPT2Attention._upcast_and_reordered_attn"),
    "llama": ("LlamaAttention.forward",),
    "bert": ("BertSelfAttention.forward", "BertCrossAttention.forward"),
    "qwen2": ("Qwen2Attention.forward",),
    "qwen3": ("Qwen3Attention.forward",),
    "t5": ("T5Attention.forward",),
}
TABLE = Path("src/insitu/engine/source/moved.json")


def functions():
    """The forwards, each model's eager attention, and the one that most models run."""
    for model, names in MODELS.items():
        module = importlib.import_module(f"{PACKAGE}.models.{model}.modeling_{model}")
        for name in (*names, "eager_attention_forward"):
            yield unwrap(reduce(getattr, name.split("."), module))
    yield importlib.import_module(f"{PACKAGE}.integrations.sdpa_attention").sdpa_attention_forward


def table() -> dict:
    entries = {}
    for function in functions():
        plan = plan_of(function)
        entries[key_of(function)] = {
            "text": text_mark(plan.definition),
            "operations": fingerprints(plan),
        }
    version = importlib.import_module(PACKAGE).__version__
    return {"package": PACKAGE, "version": version, "functions": entries}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    text = json.dumps(table(), indent=0, sort_keys=False) + "\n"
    if not check:
        TABLE.write_text(text, encoding="utf-8")
        print(f"{TABLE}: {len(text):,} bytes")
        return 0
    same = TABLE.read_text(encoding="utf-8") == text
    print("as installed" if same else f"{PACKAGE} differs from {TABLE}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
