"""Clusters of a fit cut further: each with its own variable genes, and only where one population cannot explain the cut."""
