"""The layers of a model, and its partition into local modules."""
