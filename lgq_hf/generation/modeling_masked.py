"""Bidirectional transformer that fills in masked tokens, after MaskGIT (Chang et al. 2022, arXiv 2202.04200).

Shapes: B pictures, h w grid, T = h*w tokens in raster order, K codes, D width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput

from .configuration_masked import LGQMaskedConfig


@dataclass
class LGQMaskedOutput(ModelOutput):
    """What [`LGQMaskedTransformer`] returns.

    Args:
        loss (`torch.FloatTensor`, scalar, where labels are given):
            Mean cross entropy in nats over the labels that are not -100.
        logits (`torch.FloatTensor` of shape `(B, T, K)`):
            Unnormalised log-probabilities of each code at each place; there are none for the mask.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None


def _eager_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    """The definition, in the form of transformers' attention functions."""
    weights = torch.softmax((query @ key.transpose(2, 3)) * scaling, dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class LGQMaskedNorm(nn.LayerNorm):
    """Layer norm without a shift, in the precision of its weights: fp32 under autocast."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps=eps, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, normalised over the last dimension."""
        return super().forward(x.to(self.weight.dtype))


class LGQMaskedCodes(nn.Embedding):
    """The table of codes and of the mask: looks tokens up, and compares what the network made with the codes.

    One module does both, so that whoever places weights (offloading, several devices) finds them where they are used.
    """

    def __init__(self, codebook_size: int, width: int) -> None:
        super().__init__(codebook_size + 1, width)
        self.bias = nn.Parameter(torch.zeros(codebook_size))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, T) in [0, K] -> (B, T, D); or floating point (B, T, D) -> logits of the codes (B, T, K)."""
        return F.linear(x, self.weight[:-1], self.bias) if x.is_floating_point() else super().forward(x)


class _ResidualLinear(nn.Linear):
    """A linear layer whose output is added to what came in."""


class LGQMaskedAttention(nn.Module):
    """Every token attends to every token; queries and keys are normalised, which keeps bf16 from diverging."""

    is_causal = False

    def __init__(self, config: LGQMaskedConfig) -> None:
        super().__init__()
        self.config = config
        self.heads = config.num_attention_heads
        self.head_dim = config.hidden_size // self.heads
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.query_norm = LGQMaskedNorm(self.head_dim, eps=config.layer_norm_eps)
        self.key_norm = LGQMaskedNorm(self.head_dim, eps=config.layer_norm_eps)
        self.out = _ResidualLinear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        batch, length, width = hidden_states.shape
        parts = self.query_key_value(hidden_states).view(batch, length, 3, self.heads, self.head_dim)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        query, key = self.query_norm(query).to(value.dtype), self.key_norm(key).to(value.dtype)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, _eager_attention)
        attended, _ = attend(self, query, key, value, None, scaling=self.head_dim**-0.5, is_causal=False)
        return self.out(attended.reshape(batch, length, width))


class LGQMaskedBlock(GradientCheckpointingLayer):
    """Attention and feed-forward part, each behind a norm and added to what came in."""

    def __init__(self, config: LGQMaskedConfig) -> None:
        super().__init__()
        width = config.intermediate_size or 4 * config.hidden_size
        self.attention_norm = LGQMaskedNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = LGQMaskedAttention(config)
        self.feed_forward_norm = LGQMaskedNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.hidden_size, width), nn.GELU(), _ResidualLinear(width, config.hidden_size)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        hidden_states = hidden_states + self.dropout(self.attention(self.attention_norm(hidden_states)))
        return hidden_states + self.dropout(self.feed_forward(self.feed_forward_norm(hidden_states)))


class LGQMaskedTransformer(PreTrainedModel):
    """Predicts the tokens of a grid from those that are known, and from a class.

    Positions are learned, one table for rows and one for columns: a grid of masks alone must tell its places apart,
    which positions that only turn queries and keys cannot do. The output shares the table of the input's codes.
    """

    config: LGQMaskedConfig
    config_class = LGQMaskedConfig
    base_model_prefix = "lgq_masked"
    main_input_name = "input_ids"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["LGQMaskedBlock", "LGQMaskedCodes"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: LGQMaskedConfig) -> None:
        super().__init__(config)
        self.tokens = LGQMaskedCodes(config.codebook_size, config.hidden_size)
        self.classes = nn.Embedding(config.num_classes + 1, config.hidden_size)
        self.rows = nn.Embedding(config.grid_height, config.hidden_size)
        self.columns = nn.Embedding(config.grid_width, config.hidden_size)
        self.blocks = nn.ModuleList([LGQMaskedBlock(config) for _ in range(config.num_hidden_layers)])
        self.norm = LGQMaskedNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.hidden_size)
        self.head_norm = LGQMaskedNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = float(self.config.initializer_range)
        if isinstance(module, _ResidualLinear):  # as GPT-2: what all blocks add together keeps its size
            std /= (2 * self.config.num_hidden_layers) ** 0.5
        if isinstance(module, nn.Linear | nn.Embedding):
            init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            init.zeros_(module.bias)
        if isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
        elif isinstance(module, LGQMaskedCodes):
            init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        """The table of codes and mask."""
        return self.tokens

    def forward(
        self, input_ids: Tensor, class_labels: Tensor | None = None, labels: Tensor | None = None
    ) -> LGQMaskedOutput:
        """Logits of every place.

        Args:
            input_ids: (B, T) integers in [0, K], K where a token is not known.
            class_labels: (B,) integers in [0, num_classes], the last for no class; `None`: no class for all.
            labels: (B, T) codes to compare with, -100 where nothing is compared; `None`: no loss.

        Raises:
            ValueError: another number of tokens than the grid has.
        """
        config = self.config
        if input_ids.ndim != 2 or input_ids.shape[1] != config.num_image_tokens:
            raise ValueError(
                f"expected input_ids (B, {config.num_image_tokens}), a grid of {config.grid_height} x "
                f"{config.grid_width} tokens in raster order, got shape {tuple(input_ids.shape)}"
            )
        if class_labels is None:
            class_labels = input_ids.new_full(input_ids.shape[:1], config.null_class)
        rows, columns = (
            torch.arange(size, device=input_ids.device) for size in (config.grid_height, config.grid_width)
        )
        places = (self.rows(rows)[:, None] + self.columns(columns)[None]).flatten(0, 1)
        hidden_states = self.tokens(input_ids) + places + self.classes(class_labels)[:, None]
        for block in self.blocks:
            hidden_states = block(hidden_states)
        logits = self.tokens(self.head_norm(F.gelu(self.head(self.norm(hidden_states)))))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100)
        return LGQMaskedOutput(loss=loss, logits=logits)


__all__ = ["LGQMaskedOutput", "LGQMaskedTransformer"]
