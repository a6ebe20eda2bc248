"""Marker genes of the clusters of a result: sums over all cells in one pass over the raw input, for all of its genes."""
