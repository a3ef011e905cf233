"""The field's techniques, each a short function of a model, data and a metric."""
