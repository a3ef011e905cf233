"""`with model.session():` traces that belong together.

with model.session():
    with model.trace(clean):
        h = model.layer1.output
    with model.trace(corrupted):
        model.layer1.output[:] = h
"""

from insitu.engine.save import begin_session, end_session


class Session:
    """Traces that belong together. Here they run one after another, as they stand."""

    def __enter__(self) -> "Session":
        begin_session()
        return self

    def __exit__(self, *_: object) -> None:
        end_session()
