"""What modules returned, kept for later: `cache = tracer.cache()`."""
