"""Labelled atlases of any size: of drawn cells (``drawn.py``) or of real ones (``resampled.py``)."""
