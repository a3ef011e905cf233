"""Widgets: live views of a model's insides, each fed by data."""
