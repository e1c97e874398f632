"""How good a tokenizer is: pictures beside their reconstructions, its codes, and what it costs."""

from .settings import Settings
from .tokenizers import evaluate_tokenizer

__all__ = ["Settings", "evaluate_tokenizer"]
