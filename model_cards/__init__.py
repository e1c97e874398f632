"""Model cards and every other text that states numbers: rendered from results, never typed."""
