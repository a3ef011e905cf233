"""The static twins of what a notebook shows: HTML without scripts, and text."""
