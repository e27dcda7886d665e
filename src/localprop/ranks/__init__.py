"""One step on many processes."""
