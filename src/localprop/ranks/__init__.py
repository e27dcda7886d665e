"""One training step on several processes."""
