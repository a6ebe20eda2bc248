"""How genes are chosen: a table of flavors, each of them passes of sums over blocks and a pure choice from these sums."""
