"""The server's API process: admission, a durable queue, events, results. Knows no torch."""
