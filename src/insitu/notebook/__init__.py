"""The workbench in Jupyter: `%%trace`, its run card, rich displays, completion, hover."""
