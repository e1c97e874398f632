"""Tokenizers that differ in nothing but the quantizer, trained with one budget and compared."""
