"""An image as it comes out of the noise, in HTML: the steps' pictures in a row."""

import base64
from collections.abc import Sequence
from html import escape

from insitu.twins import style

PICTURES_MAX = 12

SHEET = style.CARD + "& figure{display:inline-block;margin:0 6px 6px 0;text-align:center}"


def denoising_html(
    title: str, prompt: str, state: str, pictures: Sequence[bytes], note: str = ""
) -> str:
    """Some of the steps, the first and the last among them."""
    count = min(len(pictures), PICTURES_MAX)
    chosen = sorted({round(n * (len(pictures) - 1) / max(count - 1, 1)) for n in range(count)})
    figures = "".join(
        f'<figure><img alt="step {number}" width="96" src="data:image/{_kind(pictures[number])};'
        f'base64,{base64.b64encode(pictures[number]).decode()}"><figcaption>{number}</figcaption>'
        "</figure>"
        for number in chosen
    )
    told = f"{len(pictures)} steps, {escape(state)}"
    head = f'<div class="head"><b>{escape(title)}</b> {escape(prompt)} <span class="soft">· {told}'
    said = f'<p class="soft">{escape(note)}</p>' if note else ""
    return style.page(SHEET, f"{head}</span></div><div>{figures}</div>{said}")


def _kind(picture: bytes) -> str:
    return "png" if picture.startswith(b"\x89PNG") else "jpeg"
