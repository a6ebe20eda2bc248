"""Cells in memory: sparse rows, their genes, and the normalisation of their values."""
