"""What a training step costs: memory, operations, seconds."""
