"""Bodies taken out of the frame they stand in: found, compiled once, run later or elsewhere."""
