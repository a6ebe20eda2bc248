"""Work on a dask cluster: how it is met, and tasks that come back in order whatever becomes of a worker."""
