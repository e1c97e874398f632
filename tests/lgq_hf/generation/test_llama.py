import pytest
import torch
from transformers import LlamaForCausalLM

from lgq_hf.generation import llama_config
from lgq_hf.tokens import AutoregressiveCollator

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def test_the_vocabulary_is_the_collators() -> None:
    config = llama_config(codebook_size=32, num_classes=5, num_tokens=24, **SIZES)
    assert config.vocab_size == AutoregressiveCollator(32, 5).vocabulary_size == 38
    assert config.max_position_embeddings == 25


def test_no_code_ends_a_sequence() -> None:
    """Llama's own numbers for beginning and end are 1 and 2: codes here."""
    config = llama_config(codebook_size=3, num_classes=0, num_tokens=8, **SIZES)
    model = LlamaForCausalLM(config).eval()
    assert model.generation_config.eos_token_id is None and model.generation_config.bos_token_id is None
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[2] = 0
    made = model.generate(torch.tensor([[3]]), max_new_tokens=8, do_sample=True, suppress_tokens=[0, 1, 3])
    assert made[0, 1:].tolist() == [2] * 8


@pytest.mark.parametrize("fields", [{"codebook_size": 0}, {"vocab_size": 7}, {"hidden": 7}])
def test_fields_that_are_refused(fields: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        llama_config(**{"codebook_size": 8, "num_classes": 1, "num_tokens": 4, **fields})
