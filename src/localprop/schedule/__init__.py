"""What is known before the first step: segments, flows, actions and where they run."""
