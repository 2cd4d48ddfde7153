"""Training: the loop, one step of it, checkpoints, low-rank adapters."""

LR_END = 1e-7  # where the polynomial decay ends, the reference's value
