"""A page about a run and its result: what was done, what came out, and what looks wrong."""
