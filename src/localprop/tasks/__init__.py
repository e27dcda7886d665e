"""What a network is trained for: how a batch enters it, and what its output is worth."""
