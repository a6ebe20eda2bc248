"""Scores against labels and against held-out values."""
