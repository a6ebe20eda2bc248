"""Where predictions go: to memory, or to a zarr or h5ad that is complete or absent."""
