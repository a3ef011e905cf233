"""Run the reference documents cell by cell, with `import insitu as nnsight`.

    python tools/walkthrough.py                     # all of them
    python tools/walkthrough.py --document 004      # one, with what its cells print
    python tools/walkthrough.py --failed            # tracebacks of the cells that fail

A document's cells run one after another in one IPython shell, in a folder of their own, on the
demo models; a pipeline of which no demo ships has a tiny one in its place. The tables say what is
written differently here and why, what a reader is expected to have at hand, and what is left out,
with its reason. A cell that is left out is tried all the same: if it passes, its line in the table
has to go.
"""

import argparse
import io
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import demo_server
from IPython.core.interactiveshell import InteractiveShell
from reference_cells import CUTS, Cell, cells
from traitlets.config import Config

import insitu

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # tiny_diffusion

# What is written differently --------------------------------------------------------------------


@dataclass(frozen=True)
class Instead:
    """A pattern in cells, what stands there instead, and why."""

    pattern: str
    text: str | Callable[[re.Match[str]], str]
    why: str


INSTEAD = (
    Instead(r"(?m)^( *)!pip .*\n", r"\1pass\n", "what is needed is installed"),
    Instead(
        r"""(LanguageModel\(\s*)["'](openai-community/gpt2|gpt2|meta-llama/[\w.-]+)["']""",
        r'\1"demo"',
        "the model that ships with insitu",
    ),
    Instead(
        r"""(VisionLanguageModel|DiffusionModel)(\(\s*)["'](?:llava-hf|stabilityai)/[\w.-]+["']""",
        r'\1\2"demo"',
        "the image-text model and the pipeline that ship with insitu",
    ),
    Instead(r"(?m)^nnsight\.local\(\)#$", "", "the heading that follows"),
    Instead(
        r"(llama|model)\.model\.layers\[(-1|1|20|31|40)\]\.output(\[0\])?",
        lambda it: f"{it[1]}.transformer.h[{min(int(it[2]), 5)}].output",
        "the demo model's names; in transformers 5 a block returns a tensor, in 4 a tuple",
    ),
    Instead(
        r"(?m)^.*(set_default_api_key|YOUR_HUGGING_FACE_TOKEN).*\n?",
        "",
        "the server here knows our key",
    ),
    Instead(r"h\[6\]", "h[5]", "the demo model has six blocks"),
    Instead(
        r"\.output\[0\](?=\[:, -1, :\]|(\.save\(\))?\s+(first_token = |hidden\.retain_grad))",
        ".output",
        "in transformers 5 a block of GPT-2 returns a tensor, in 4 a tuple of one",
    ),
    Instead(
        r"(?m)^( *(?:layer_out|layer_output) = .*\n)((?: *(?:attention|attn_out|mlp_out) = .*\n)+)",
        r"\2\1",
        "a block's attention runs before its output is there, as 001 and 004 say",
    ),
    Instead(
        r"(logits = model\.output)(?=\s+target_token)",
        r"\1.logits",
        "a language model returns its logits with a name",
    ),
)

# What is left out --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Skip:
    """Cells that hold a text are left out, for a reason; they are tried all the same."""

    text: str
    reason: str


SKIPS = (
    Skip("nnterp", "a package of others, which is not installed"),
    Skip("VLLM", "vLLM is not installed, and insitu has no class for it yet"),
    Skip(
        "output = model.generate(max_new_tokens=50)",
        "generate() is given no prompt; nnsight 0.6.0 and 0.8.1 fail too, in an invoke and beside",
    ),
)

# What the reader has at hand ---------------------------------------------------------------------

GIVEN = {
    "000": "",
    "001": "import torch",
    "002": """
        import torch
        prompt = "The Eiffel Tower is in"
        some_tensor, steering_vector = torch.ones(128), torch.ones(128)
    """,
    "003": """
        import torch
        from collections import OrderedDict
        from nnsight import LanguageModel
        model = LanguageModel("demo")
        my_ids = model.tokenizer("Hello world", return_tensors="pt")["input_ids"]
        my_pytorch_model = torch.nn.Sequential(OrderedDict(layer=torch.nn.Linear(5, 2)))
        input = torch.rand(1, 5)
    """,
    "004": "",
}
"""Names that a document uses without making them."""


@dataclass(frozen=True)
class Aside:
    """A cell with a model of its own, whose names are taken back after it.

    `before` is run first; `around` is the line whose block it belongs to.
    """

    text: str
    before: str = ""
    around: str = ""
    raises: type[Exception] | None = None


LAYERED = 'model = LanguageModel("demo", rename={"transformer.h": "layers"})'
ASIDES = (
    Aside("# no .local - will cause an error", raises=insitu.FunctionWhitelistError),
    Aside(
        "open('myfile.txt'",
        "from pathlib import Path\nPath('myfile.txt').write_text('Simple enough!')",
    ),
    Aside(
        'Image.open("photo.jpg")',
        """
        from insitu.models.demo_vision import draw
        draw("circle", "red", "left").save("photo.jpg")
        """,
    ),
    Aside(
        '"black-forest-labs/FLUX.1-schnell"',
        """
        import tiny_diffusion, torch
        tiny_diffusion.flux().save_pretrained("black-forest-labs/FLUX.1-schnell")
        torch.manual_seed(0)
        """,
    ),
    Aside(
        "import mymodule",
        """
        import sys, tempfile
        from pathlib import Path
        mine = tempfile.TemporaryDirectory()
        sys.path.insert(0, mine.name)
        text = "def my_analysis_function(model):\\n    return model.lm_head.output[0, -1]\\n"
        Path(mine.name, "mymodule.py").write_text(text)
        """,
    ),
    Aside("model.input   #", around="with model.trace(input):"),
    Aside("output = nnsight.save(model.output)", around="with model.trace(input):"),
    Aside("# Then waits for layer 5", f"from nnsight import LanguageModel\n{LAYERED}"),
    Aside(
        "# ERROR! Layer 0",
        f"from nnsight import LanguageModel\n{LAYERED}",
        raises=insitu.OutOfOrderError,
    ),
    Aside("(input1)", "input1, input2 = torch.rand(1, 5), torch.rand(1, 5)"),
    Aside("cache = tracer.cache(\n", around="with model.trace(input) as tracer:"),
    Aside("model = NNsight(net)\n\nwith"),
    Aside(
        "model.model.embed_tokens",
        """
        from transformers import LlamaConfig, LlamaForCausalLM
        config = LlamaConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=11, num_attention_heads=2,
            vocab_size=len(model.tokenizer),
        )
        model = LanguageModel(LlamaForCausalLM(config), tokenizer=model.tokenizer)
        """,
    ),
)

# Running -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What became of a cell: `ok`, `skipped`, `failed`, or `passes` though it is to be skipped."""

    cell: Cell
    status: str
    reason: str = ""
    printed: str = ""
    names: dict[str, Any] = field(default_factory=dict, repr=False)


def run(document: str) -> list[Result]:
    """Run all cells of a document, in order; `remote=True` is a server of the demo model here."""
    url, key = demo_server.shared()
    with a_shell() as shell:
        insitu.CONFIG.API.HOST, insitu.CONFIG.API.KEY = url, key
        attempt(shell, GIVEN[document])
        return [_run_cell(shell, cell) for cell in cells(document)]


def _run_cell(shell: InteractiveShell, cell: Cell) -> Result:
    code = rewritten(cell.code)
    skip = next((it for it in SKIPS if it.text in code), None)
    aside = next((it for it in ASIDES if it.text in code), None)
    before = dict(shell.user_ns)
    if aside:
        attempt(shell, aside.before)
        code = f"{aside.around}\n{textwrap.indent(code, '    ')}" if aside.around else code
    printed, error = attempt(shell, code)
    names = {k: v for k, v in shell.user_ns.items() if not k.startswith("_")}
    if aside or skip:
        shell.user_ns.clear()
        shell.user_ns.update(before)
    if aside and aside.raises:
        error = None if isinstance(error, aside.raises) else error or AssertionError("no error")
    if skip:
        return Result(cell, "skipped" if error else "passes", skip.reason, printed)
    why = f"{type(error).__name__}: {error}".splitlines()[0] if error else ""
    return Result(cell, "failed" if error else "ok", why, printed, names)


def rewritten(code: str) -> str:
    """A cell's code as it is run here."""
    for it in INSTEAD:
        code = re.sub(it.pattern, it.text, code)
    return code


def attempt(shell: InteractiveShell, code: str) -> tuple[str, BaseException | None]:
    """Run code as a cell; what it printed, and how it failed."""
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        result = shell.run_cell(textwrap.dedent(code))
    return out.getvalue(), result.error_before_exec or result.error_in_exec


@contextmanager
def a_shell() -> Iterator[InteractiveShell]:
    """A shell in which `nnsight` is insitu; what cells change of the process is put back."""
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    environment, modules = dict(os.environ), ("nnsight", "__main__")
    before = {name: sys.modules.get(name) for name in modules}
    app, api = vars(insitu.CONFIG.APP).copy(), vars(insitu.CONFIG.API).copy()
    sys.modules["nnsight"] = insitu
    try:
        with TemporaryDirectory() as folder, TemporaryDirectory() as place, chdir(place):
            yield InteractiveShell(config=config, ipython_dir=folder)
    finally:
        vars(insitu.CONFIG.APP).update(app)
        vars(insitu.CONFIG.API).update(api)
        os.environ.clear()
        os.environ.update(environment)
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


# Showing -----------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--document", choices=sorted(CUTS))
    parser.add_argument("--failed", action="store_true", help="tracebacks of cells that fail")
    given = parser.parse_args()
    bad = 0
    for document in [given.document] if given.document else sorted(CUTS):
        results = run(document)
        bad += sum(it.status in ("failed", "passes") for it in results)
        for it in results:
            print(f"{document} {it.cell.number:2} {it.cell.first[:60]:60} {it.status} {it.reason}")
            if (given.document and it.status == "ok") or (given.failed and it.status == "failed"):
                print(textwrap.indent(it.printed, "        "), end="")
        print(summary(document, results), end="\n\n")
    return 1 if bad else 0


def summary(document: str, results: list[Result]) -> str:
    """How many cells of each kind."""
    kinds = sorted(
        f"skipped ({it.reason})" if it.status == "skipped" else it.status for it in results
    )
    counted = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    return f"{document}: {len(results)} cells, {counted}"


if __name__ == "__main__":
    sys.exit(main())
