"""The fit: recipe, state, gradient steps and sweeps; its clusters and the folder of a run have rooms of their own."""
