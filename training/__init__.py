"""Training of tokenizers, run from a checkout."""
