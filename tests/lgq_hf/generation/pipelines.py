"""Tiny random pipelines of both kinds: f4, a grid of 8 x 8 tokens, K = 32, pictures of 32 x 32 pixels."""

from typing import Any

import torch
from transformers import LlamaForCausalLM

from lgq_hf import LGQConfig, LGQImageProcessor, LGQModel
from lgq_hf.generation import (
    LGQAutoregressivePipeline,
    LGQMaskedConfig,
    LGQMaskedPipeline,
    LGQMaskedTransformer,
    llama_config,
)

CODES, SIDE = 32, 8


def tokenizer() -> LGQModel:
    """Random weights, moved from where they start."""
    small: dict[str, Any] = {"base_channels": 8, "channel_multiplier": [1, 1, 1], "num_res_blocks": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LGQModel(LGQConfig(**small, latent_channels=8, codebook_size=CODES, image_size=4 * SIDE)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def small_pipeline(
    kind: str, *, num_classes: int = 3, id2label: dict[int, str] | None = None, width: int = SIDE
) -> Any:
    """A pipeline of kind "masked" or "autoregressive" without progress bars, `width` tokens in a row."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        if kind == "masked":
            config = LGQMaskedConfig(
                codebook_size=CODES,
                num_classes=num_classes,
                grid_height=SIDE,
                grid_width=width,
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
            )
            network: Any = LGQMaskedTransformer(config).eval()
        else:
            sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
            counts = {"codebook_size": CODES, "num_classes": num_classes, "num_tokens": SIDE * width}
            network = LlamaForCausalLM(llama_config(**counts, **sizes)).eval()
    cls = LGQMaskedPipeline if kind == "masked" else LGQAutoregressivePipeline
    processor = LGQImageProcessor(pad_to_multiple_of=4)
    pipe = cls(tokenizer(), processor, network, grid_height=SIDE, grid_width=width, id2label=id2label)
    pipe.set_progress_bar_config(disable=True)
    return pipe
