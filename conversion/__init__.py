"""Foreign checkpoints to lgq_hf models: strict both ways."""
