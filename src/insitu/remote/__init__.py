"""A block runs where the model is: `with model.trace("Hello", remote=True):`."""
