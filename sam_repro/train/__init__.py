"""Training: the loop, its checkpoints, and the store of runs."""
