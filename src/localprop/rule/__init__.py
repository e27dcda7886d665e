"""The vocabulary of a training rule: credit, heads, losses and contexts. Nothing runs here."""
