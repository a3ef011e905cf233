"""An answer that is no success, as the error it means: the server's own three lines, where it says
them, and otherwise what its number says.
"""

from typing import Any, Protocol

from insitu.errors import InsituError, QueueFullError, ServerError, ServerRefusedError
from insitu.remote.client import words

_WORDS_BYTES = 64 * 2**10
_RETRY_MOST_S = 3600.0

_MEANINGS = {
    401: ("it does not know the key that was sent, or none was", "give it one: "
          "CONFIG.set_default_api_key(…), or INSITU_API_KEY; `insitu keys add` makes one there"),
    403: ("the key may not do that", "insitu.whoami() shows what it may"),
    404: ("there is nothing of that name", "insitu.status() shows its models"),
    409: ("it has had another request under the same name", "send it again"),
    413: ("the request is larger than it takes", "send less: build large tensors in the block"),
    429: ("its queue is full", "try again later"),
    503: ("it is starting or stopping", "try again in a moment"),
}  # fmt: skip


class Answered(Protocol):
    """The part of a `connection.Answer` that is read here."""

    status: int
    url: str

    def header(self, name: str) -> str: ...  # noqa: D102

    def body(self, most: int, within_s: float = ...) -> bytes: ...  # noqa: D102


def of(answer: Answered) -> ServerError:
    """The error that an answer means."""
    if answer.header("Content-Encoding") and 200 <= answer.status < 300:
        return words.strange("an answer in an encoding that was not asked for")
    if 300 <= answer.status < 400:
        place = words.one_line(answer.header("Location"), 200)
        return _made(ServerRefusedError, answer, (
            f"the server at {answer.url} sends its callers elsewhere.",
            f"it answered {answer.status}, to {place or 'no place'}; a key is not sent on.",
            "if you trust that place, name it as the server: CONFIG.API.HOST, or remote=URL.",
        ))  # fmt: skip
    error = _made(
        QueueFullError if answer.status == 429 else ServerRefusedError, answer, _lines(answer)
    )
    if isinstance(error, QueueFullError):
        error.retry_after = _seconds(answer.header("Retry-After"))
    return error


def _made(
    kind: type[ServerRefusedError], answer: Answered, lines: tuple[str, str, str]
) -> ServerRefusedError:
    error = kind(*lines)
    error.status = answer.status
    return error


def _lines(answer: Answered) -> tuple[str, str, str]:
    try:
        told: Any = words.parsed(answer.body(_WORDS_BYTES, within_s=5.0), "an answer")
    except InsituError:
        told = {}
    lines = [words.one_line(told.get(name) or "", 1_000) for name in ("what", "why", "next")]
    if all(lines):
        return lines[0], lines[1], lines[2]
    why, next = _MEANINGS.get(answer.status, ("it does not say why", "look at its own log"))
    return (
        lines[0] or f"the server at {answer.url} answered {answer.status}.",
        f"{why}.",
        f"{next}.",
    )


def _seconds(told: str) -> float:
    """Of a `Retry-After`; 1 where it says none."""
    is_count = told.isascii() and told.isdigit() and len(told) < 10
    return min(float(told), _RETRY_MOST_S) if is_count else 1.0
