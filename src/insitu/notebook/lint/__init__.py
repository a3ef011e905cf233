"""Mistakes that a cell's text shows before its model runs, each with its repair."""
