"""Scripts that an environment of the peers runs: no module of ours, and none of these is imported by us."""
