"""Cells in memory: sources, the plan of rows, the feed of batches."""
