"""A first look inside the demo model: what it answers, where that forms, how to change it.

found = explore(LanguageModel("demo"))
print(as_text(found))
Path("demo.html").write_text(as_html(found))
"""

from dataclasses import dataclass
from html import escape

import torch

from insitu.models.language import LanguageModel

SUBJECT, OTHER_SUBJECT = "The Eiffel Tower", "The Trevi Fountain"  # three tokens each
PROMPT = f"{SUBJECT} is in the city of"
OTHER = f"{OTHER_SUBJECT} is in the city of"

Guess = tuple[str, float]
"""A token and its probability."""


@dataclass(frozen=True)
class Found:
    """What the tour found out."""

    size: str
    answer: tuple[Guess, ...]
    lens: tuple[tuple[Guess, ...], ...]
    """Per layer: the residual stream at the last position, read as a prediction."""
    patched: tuple[tuple[float, float], ...]
    """After 0, 1, … layers: the other answer's chance, patching the subject or the last token."""
    other: str
    continued: str
    continued_edited: str


def explore(model: LanguageModel) -> Found:
    """Read, patch and generate on the demo model; about twenty forward passes."""
    layers = model.transformer.h
    with torch.no_grad():
        with model.trace(PROMPT):
            lens = []
            for layer in layers:
                stream = layer.output
                lens.append(_top(model, model.lm_head(model.transformer.ln_f(stream)), 3))
            logits = model.lm_head.output
        with model.trace(OTHER):
            streams = [layers[0].input[0].clone(), *(layer.output[0].clone() for layer in layers)]
            other = _top(model, model.lm_head.output, 1)[0][0]
        answer = _top(model, logits, 5)
        name, last = slice(1, len(model.tokenizer.encode(SUBJECT))), slice(-1, None)
        patched = [
            (_patch(model, i, (name, stream), other), _patch(model, i, (last, stream), other))
            for i, stream in enumerate(streams)
        ]
        plain, edited = _generate(model, None), _generate(model, streams[-2][-1])
    parameters = sum(p.numel() for p in model._module.parameters())
    size = f"{len(layers)} layers, {parameters / 1e6:.1f} M parameters"
    return Found(size, answer, tuple(lens), tuple(patched), other, plain, edited)


def _patch(model: LanguageModel, depth: int, put: tuple[slice, torch.Tensor], answer: str) -> float:
    """Put another prompt's residual stream into one place, after so many layers."""
    place, stream = put
    with model.trace(PROMPT):
        layers = model.transformer.h
        before = layers[depth - 1].output if depth else layers[0].input
        before[0, place] = stream[place]
        chances = model.lm_head.output[0, -1].softmax(-1)
    return float(chances[model.tokenizer.encode(answer)[0]])


def _generate(model: LanguageModel, stream: torch.Tensor | None) -> str:
    """Continue a prompt; with a stream, put it in at step 3 alone."""
    with model.generate("The Eiffel Tower is in", max_new_tokens=5) as tracer:
        for _ in tracer.iter[3] if stream is not None else ():
            model.transformer.h[-2].output[0, -1] = stream
        ids = model.generator.output
    return str(model.tokenizer.decode(ids[0]))


def _top(model: LanguageModel, logits: torch.Tensor, count: int) -> tuple[Guess, ...]:
    chances, ids = logits[0, -1].softmax(-1).topk(count)
    return tuple((model.tokenizer.decode(i), c.item()) for i, c in zip(ids, chances, strict=True))


def as_text(found: Found) -> str:
    """The findings for a terminal."""
    lines = [
        f"The demo model: {found.size}.",
        "",
        f'1. What it answers.   "{PROMPT}" →',
        *(f"     {token!r:14}{chance:7.1%}" for token, chance in found.answer[:3]),
        "",
        "2. Where the answer forms: each layer's output, read by the final norm and unembedding.",
    ]
    for number, guesses in enumerate(found.lens):
        shown = "".join(f"{f'{token!r} {chance:.0%}':20}" for token, chance in guesses)
        lines.append(f"     transformer.h.{number:<4}{shown}")
    lines += [
        "",
        f'3. What carries it: the residual stream of "{OTHER}" put into this prompt,',
        f"   and how likely {found.other!r} is then.",
        f"     {'':16}{'its name':>10}{'last token':>14}",
    ]
    lines += [
        f"     after {number} layers  {subject:10.1%}{last:14.1%}"
        for number, (subject, last) in enumerate(found.patched)
    ]
    lines += [
        "",
        "4. Generation, and the same with that edit at step 3 alone.",
        f"     {found.continued}",
        f"     {found.continued_edited}",
    ]
    return "\n".join(lines)


def as_html(found: Found) -> str:
    """The findings as a page of its own: no script, nothing fetched."""
    answer = "".join(_bar_row(token, chance) for token, chance in found.answer)
    lens = "".join(
        f"<tr><th scope=row>transformer.h.{number}</th>"
        + "".join(f"<td>{_token(token)} <small>{chance:.0%}</small></td>" for token, chance in row)
        + "</tr>"
        for number, row in enumerate(found.lens)
    )
    patched = "".join(
        f"<tr><th scope=row>after {number} layers</th>"
        f"<td>{_bar(subject)}</td><td>{_bar(last)}</td></tr>"
        for number, (subject, last) in enumerate(found.patched)
    )
    return _PAGE.format(
        size=escape(found.size),
        prompt=escape(PROMPT),
        other=escape(OTHER),
        answer=answer,
        lens=lens,
        answered=_token(found.other),
        patched=patched,
        plain=escape(found.continued),
        edited=escape(found.continued_edited),
    )


def _token(token: str) -> str:
    return f"<code>{escape(token.replace(' ', '·'))}</code>"


def _bar(chance: float) -> str:
    return f'<span class=bar style="--p:{chance:.4f}"></span> {chance:.1%}'


def _bar_row(token: str, chance: float) -> str:
    return f"<tr><th scope=row>{_token(token)}</th><td>{_bar(chance)}</td></tr>"


_PAGE = """<!doctype html>
<html lang=en><meta charset=utf-8><title>Insitu: inside the demo model</title>
<meta name=viewport content="width=device-width, initial-scale=1">
<style>
:root {{ color-scheme: light dark;
  --ink: #1c2430; --soft: #5c6878; --rule: #dde2e8; --bar: #2f6f9f; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e6eaf0; --soft: #9aa6b5; --rule: #333c48; --bar: #6fb1de; }}
}}
body {{ font: 16px/1.55 system-ui, sans-serif; color: var(--ink); max-width: 44rem;
  margin: 3rem auto; padding: 0 1.25rem; }}
h1 {{ font-size: 1.6rem; margin: 0; }} h2 {{ font-size: 1.05rem; margin: 2.2rem 0 .3rem; }}
p {{ color: var(--soft); margin: .2rem 0 .8rem; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; font-weight: 400; padding: .3rem .8rem .3rem 0;
  border-top: 1px solid var(--rule); white-space: nowrap; }}
thead th {{ border: 0; color: var(--soft); font-size: .85rem; }}
code, pre {{ font: .9em ui-monospace, monospace; }} small {{ color: var(--soft); }}
pre {{ border: 1px solid var(--rule); border-radius: 6px; padding: .8rem 1rem; overflow-x: auto; }}
.bar {{ display: inline-block; width: 9rem; height: .6rem; border-radius: 3px;
  vertical-align: baseline; background: linear-gradient(var(--bar), var(--bar)) no-repeat,
  var(--rule); background-size: calc(var(--p) * 100%) 100%, 100% 100%; }}
</style>
<h1>Inside the demo model</h1>
<p>{size}. Every figure below was read from the running model, in place.</p>
<h2>What it answers</h2><p>“{prompt}” is followed by</p>
<table>{answer}</table>
<h2>Where the answer forms</h2>
<p>The residual stream at the last position, after each layer, through the final norm and the
unembedding: the logit lens.</p>
<table>{lens}</table>
<h2>What carries the answer</h2>
<p>The residual stream of “{other}” put into this prompt, at one depth and one place; the bars show
how likely {answered} is then.</p>
<table><thead><tr><th scope=col>patched at</th><th scope=col>the subject’s name</th>
<th scope=col>last token of the prompt</th></tr></thead>{patched}</table>
<h2>One step of a generation changed</h2>
<p>“The Eiffel Tower is in”, continued; below, the same with that patch at step 3 alone.</p>
<pre>{plain}
{edited}</pre>
<h2>The program</h2>
<pre>from insitu import LanguageModel

model = LanguageModel("demo")
with model.trace("{other}"):
    stream = model.transformer.h[2].output[0, -1].clone()
with model.trace("{prompt}"):
    model.transformer.h[2].output[0, -1] = stream
    logits = model.lm_head.output
print(model.tokenizer.decode(logits[0, -1].argmax()))</pre>
</html>
"""
