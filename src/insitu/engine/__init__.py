"""The tracing engine: a block and a forward pass as two coroutines."""
