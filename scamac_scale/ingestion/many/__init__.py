"""Several inputs as one, and some cells of an input."""
