"""Pure tensor functions, one equation each: no file, rank, clock, config or global seed."""
