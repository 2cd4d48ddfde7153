"""Training: the loop, one step of it, checkpoints, low-rank adapters."""
