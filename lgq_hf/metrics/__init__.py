"""How good a tokenizer is, in numbers."""
