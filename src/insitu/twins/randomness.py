"""Where torch's generators of random numbers stand, as text; and back there.

before = now()
torch.rand(3)
restore(before)
torch.rand(3)           # the same three
"""

import base64

import torch


def now() -> str:
    """The state of the CPU's generator, and of each CUDA device's where CUDA is in use."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states += torch.cuda.get_rng_state_all()
    return " ".join(base64.b64encode(bytes(state.tolist())).decode() for state in states)


def restore(text: str) -> None:
    """Put the generators back; of devices that are not here, nothing."""
    cpu, *devices = (
        torch.tensor(list(base64.b64decode(it)), dtype=torch.uint8) for it in text.split()
    )
    torch.set_rng_state(cpu)
    for index, state in enumerate(devices[: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, index)
