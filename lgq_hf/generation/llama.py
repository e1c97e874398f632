"""The autoregressive generator: `LlamaForCausalLM` of transformers over [codes | classes | none].

Code k is token k, class c is token K + c, "no class" is the last token. A sequence is a class, then the T tokens of a
picture in raster order: what `AutoregressiveCollator` makes.
"""

from typing import Any

from transformers import LlamaConfig


def llama_config(*, codebook_size: int, num_classes: int, num_tokens: int, **fields: Any) -> LlamaConfig:
    """The configuration of a Llama that generates pictures.

    Args:
        codebook_size: K of the tokenizer.
        num_classes: 0 for a model without classes.
        num_tokens: T of a picture.
        **fields: of `LlamaConfig`: hidden_size, num_hidden_layers, num_attention_heads, ...; without them those of the
            smallest LlamaGen (Sun et al. 2024, arXiv 2406.06525, table 1: B, 111 million parameters).

    Raises:
        ValueError: counts below their least, a field that follows from the tokenizer, or one that `LlamaConfig` lacks.
    """
    if codebook_size < 1 or num_classes < 0 or num_tokens < 1:
        raise ValueError(
            "expected at least one code, one token and no negative number of classes, got "
            f"{codebook_size=}, {num_classes=}, {num_tokens=}"
        )
    ours = {
        "vocab_size": codebook_size + num_classes + 1,
        "max_position_embeddings": num_tokens + 1,
        # Llama's own numbers for these are codes here, and generate() would stop at them
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if told := sorted(set(fields) & set(ours)):
        raise ValueError(f"{told} follow from codebook_size, num_classes and num_tokens: leave them out")
    if unknown := sorted(set(fields) - set(LlamaConfig.__annotations__)):
        raise ValueError(
            f"LlamaConfig has no {unknown}; it has {sorted(set(LlamaConfig.__annotations__) - set(ours))}"
        )
    default = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}
    return LlamaConfig(**{**default, **fields, **ours})


__all__ = ["llama_config"]
