"""What the server says no with: a status and three lines, as JSON.

raise Refusal(404, "this server has no job j1.", "It may be another's.", "See GET /v1/jobs.")
"""

import json
from collections.abc import Mapping

from starlette.responses import Response

LATER = (429, 503, 507)
"""What may be otherwise when the client comes again; each says when."""
RETRY_AFTER_S = 2


class Refusal(Exception):
    """An answer that is an error: `{"what", "why", "next"}` and a status."""

    def __init__(
        self, status: int, what: str, why: str, next: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(what)
        self.status = status
        self.what = what
        self.why = why
        self.next = next
        later = {"Retry-After": str(RETRY_AFTER_S)} if status in LATER else {}
        self.headers = {**later, **(headers or {})}

    def response(self) -> Response:
        """The answer itself."""
        return json_response(
            {"what": self.what, "why": self.why, "next": self.next}, self.status, self.headers
        )


class StoreTrouble(Exception):
    """The database or the disk did not take what was to be written."""

    def __init__(self, what: str, why: str, next: str) -> None:
        super().__init__(what)
        self.refusal = Refusal(503, what, why, next, {"Retry-After": "2"})


def json_response(
    content: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """JSON, never kept by anything in between."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    kept_by_none = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return Response(
        text.encode("utf-8", "replace"),
        status,
        {**kept_by_none, **(headers or {})},
        media_type="application/json",
    )


def no_job(job: str) -> Refusal:
    """The same words whether a job is another user's or never was."""
    return Refusal(
        404,
        f"this server has no job {job[:40]!r} of yours.",
        "A job is seen by the key that sent it alone, and is forgotten some days after its end.",
        "GET /v1/jobs lists your jobs.",
    )


def too_large(limit: int, what: str = "a request") -> Refusal:
    """A body has outgrown its bound."""
    return Refusal(
        413,
        f"the body is larger than {limit:,} bytes.",
        f"That is the most this server takes as {what}; /v1/info tells its limits.",
        "Send less: build large tensors inside the block, or reduce them first.",
    )


def queue_full(text: str, wait_s: int) -> Refusal:
    """Too many wait already."""
    return Refusal(
        429,
        text,
        "Jobs that wait are bounded, so that what is accepted is also run.",
        f"Try again in {wait_s} s.",
        {"Retry-After": str(wait_s)},
    )
