"""Jobs beside a model that computes in a process of its own, on a device that cannot be forked."""
