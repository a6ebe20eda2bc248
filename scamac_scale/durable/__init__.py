"""Work that survives a kill: outputs that are complete or absent, one writer for each, and faults on demand for tests."""
