"""`with insitu.local():` the part of a block that runs on the user's machine.

    with model.trace("Hello", remote=True):
        h = model.transformer.h[2].output
        with insitu.local():
            h = probe(h)                        # here, with everything this process has
        model.transformer.h[2].output[:] = h    # there

In a block that runs here anyway it changes nothing.
"""

MARK = "__insitu_trace__"
"""The attribute of a function that `@insitu.trace` has marked for such parts."""


class local:
    """A part of a remote block that runs here: values come down, what it assigns goes up.

    Its site reads (`model.lm_head.output`) are answered by the server, in the order of the text.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass
