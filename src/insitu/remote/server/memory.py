"""Memory that is used again instead of being asked for anew.

keep_freed()

A megabyte that the system gives anew costs 0.7 ms, for it comes in pages of zeros; one that is used
again costs nothing. glibc gives back what is free at the end of its heap beyond 128 KB, so each
`local()` part would pay for its values four times on their way through a server.
"""

import ctypes

_TRIM, _MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
KEPT_BYTES = 32 * 2**20
LARGE_BYTES = 8 * 2**20
"""What is larger is given back as soon as it is free."""


def keep_freed() -> bool:
    """Let this process keep so much of its freed memory; whether it can."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # neither glibc nor musl
        return False
    return bool(mallopt(_TRIM, KEPT_BYTES) and mallopt(_MMAP, LARGE_BYTES))
