"""Whether a device still computes: some errors of a GPU stay with a process for good.

    if not device_health.works(device):
        return                          # the process ends, and another one opens the model

After an assertion that failed on the device, or an illegal access, every later call in that process
fails, of whatever job it is.
"""

import torch


def works(device: torch.device) -> bool:
    """Whether the next job can use it."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True
