"""Plans: which way of training fits into so many bytes, and costs least."""
