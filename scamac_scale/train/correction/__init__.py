"""The correction of technical batches: where components lie, and the passes over them."""
