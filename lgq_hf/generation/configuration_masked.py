"""Configuration of the masked generator."""

import math

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class LGQMaskedConfig(PreTrainedConfig):
    r"""
    Everything that fixes the shape of an [`LGQMaskedTransformer`]. Defaults are MaskGIT's width with 256 tokens.

    Args:
        codebook_size: K of the tokenizer; K itself stands for a token that is not known yet.
        num_classes: classes that a picture can be asked for; 0 for a model without. The number after the last one
            stands for "no class".
        grid_height: rows *h* of tokens.
        grid_width: tokens *w* in a row.
        hidden_size: width of the transformer.
        num_hidden_layers: blocks.
        num_attention_heads: heads of each.
        intermediate_size: width of the blocks' feed-forward part; `None`: four times `hidden_size`.
        dropout: share of what a block adds that is dropped in training, in [0, 1).
        layer_norm_eps: what norms add to the variance.
        initializer_range: standard deviation of initial weights.
    """

    model_type = "lgq_masked"

    codebook_size: int = 16384
    num_classes: int = 0
    grid_height: int = 16
    grid_width: int = 16
    hidden_size: int = 768
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int | None = None
    dropout: float | int = 0.1
    layer_norm_eps: float | int = 1e-6
    initializer_range: float | int = 0.02

    @property
    def mask_token(self) -> int:
        """What stands for a token that is not known yet."""
        return self.codebook_size

    @property
    def null_class(self) -> int:
        """The class number that stands for none."""
        return self.num_classes

    @property
    def num_image_tokens(self) -> int:
        """T = h*w."""
        return self.grid_height * self.grid_width

    def validate_architecture(self) -> None:
        """Refuses sizes that no network has and fields that contradict each other (`ValueError`)."""
        sizes = ("codebook_size", "grid_height", "grid_width", "hidden_size", "num_hidden_layers")
        for name in (*sizes, "num_attention_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_classes < 0:
            raise ValueError(f"num_classes must be 0 or more, got {self.num_classes}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads={self.num_attention_heads}, got "
                f"{self.hidden_size}"
            )
        if self.intermediate_size is not None and self.intermediate_size < 1:
            raise ValueError(f"intermediate_size must be at least 1 or None, got {self.intermediate_size}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        for name in ("layer_norm_eps", "initializer_range"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")


__all__ = ["LGQMaskedConfig"]
