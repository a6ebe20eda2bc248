"""The clusters of a fit: which cells stand for others, how they are labelled, and what follows for all cells."""
