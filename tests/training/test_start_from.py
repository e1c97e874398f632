"""What a run takes over from another model."""

from typing import Any

import pytest
import torch

from lgq_hf import LGQConfig, LGQModel
from tests.training.steps import RUN_MODEL
from training.initialization import take_over


def test_a_network_with_one_more_halving_takes_over_both_halves() -> None:
    fields = RUN_MODEL | {"base_channels": 8, "num_res_blocks": 1}
    source = LGQModel(LGQConfig(**fields | {"channel_multiplier": [1, 2]}))
    deeper = LGQModel(LGQConfig(**fields | {"channel_multiplier": [1, 2, 4]}))
    take_over(deeper, source.state_dict(), "a folder")
    theirs, ours = source.decoder, deeper.decoder
    pairs = [
        (theirs.upsamplers[-1], ours.upsamplers[-1]),
        (source.encoder.downsamplers[0], deeper.encoder.downsamplers[0]),
    ]
    pairs += [(theirs.stages[-number], ours.stages[-number]) for number in (1, 2)]
    for old, new in pairs:
        for name, tensor in old.state_dict().items():
            assert torch.equal(new.state_dict()[name], tensor), name


ATTENTION = {"num_res_blocks": 1, "bottleneck_attention": True}
VQGAN = {"backbone": "vqgan", "bottleneck_attention": True, "norm_num_groups": 4, "num_mid_blocks": 1}


@pytest.mark.parametrize(
    ("shallow", "deep", "more"),
    [
        ({"num_res_blocks": 1}, {"num_res_blocks": 1, "decoder_num_res_blocks": [2, 4]}, 4),
        ({"num_res_blocks": 1}, {"num_res_blocks": 3}, 8),
        (ATTENTION, ATTENTION | {"num_res_blocks": 2}, 4),
        (ATTENTION | {"bottleneck_attention": False}, ATTENTION, 2),
        (VQGAN, VQGAN | {"num_res_blocks": 2, "num_mid_blocks": 2}, 6),
        (VQGAN | {"conv_bias": False}, VQGAN | {"conv_bias": False, "num_res_blocks": 2, "attention_levels": [1]}, 9),
    ],
)
def test_a_deeper_network_begins_as_the_shallower_one(
    shallow: dict[str, Any], deep: dict[str, Any], more: int
) -> None:
    fields = RUN_MODEL | {"base_channels": 8, "channel_multiplier": [1, 2]}
    source = LGQModel(LGQConfig(**fields | shallow)).eval()
    deeper = LGQModel(LGQConfig(**fields | deep)).eval()
    codes = torch.randn(1, source.config.latent_channels, 4, 4)
    pictures = torch.randn(1, 3, 8, 8)
    assert not torch.equal(deeper.decoder(codes), source.decoder(codes))
    told = take_over(deeper, source.state_dict(), "a folder")
    assert told.endswith(f"from a folder; {more} more blocks begin as the identity")
    assert torch.equal(deeper.decoder(codes), source.decoder(codes))
    assert torch.equal(deeper.encoder(pictures), source.encoder(pictures))
    deeper.decoder(codes).square().mean().backward()
    gradients = {name: tensor.grad for name, tensor in deeper.decoder.named_parameters() if ".conv2." in name}
    assert all(gradient is not None and gradient.any() for gradient in gradients.values())


def test_taking_over_copies_what_fits() -> None:
    source = LGQModel(LGQConfig(**RUN_MODEL))
    wider = LGQModel(LGQConfig(**RUN_MODEL | {"latent_channels": 8, "code_dim": 4}))
    assert take_over(wider, source.state_dict(), "a folder").startswith("took over ")
    with pytest.raises(ValueError, match="no tensor of a file has the name and shape of one of this network's"):
        take_over(wider, {"encoder.stem.weight": torch.zeros(3)}, "a file")
    assert torch.equal(wider.encoder.stem.weight, source.encoder.stem.weight)
    assert torch.equal(wider.quantizer.centers, source.quantizer.centers)
    assert wider.encoder.to_emb.weight.shape != source.encoder.to_emb.weight.shape
