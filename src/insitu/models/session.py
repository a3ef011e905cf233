"""`with model.session():` traces that belong together.

with model.session():
    with model.trace(clean):
        h = model.layer1.output
    with model.trace(corrupted):
        model.layer1.output[:] = h
"""


class Session:
    """Traces that belong together. Here they run one after another, as they stand."""

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        pass
