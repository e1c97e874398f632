"""The configuration: what it derives, what it refuses, and that it survives a file."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError

from lgq_hf import LGQConfig

PRODUCT = {"codebook_mode": "product", "levels": [4, 4, 2], "code_dim": 3, "codebook_size": 32}


def test_defaults_are_the_published_model() -> None:
    config = LGQConfig()
    published = {
        "backbone": "lgq",
        "in_channels": 3,
        "base_channels": 128,
        "num_res_blocks": 2,
        "decoder_num_res_blocks": None,
        "bottleneck_attention": True,
        "num_attention_heads": 4,
        "legacy_decoder": False,
        "latent_channels": 64,
        "code_dim": None,
        "quantizer": "lgq",
        "codebook_mode": "vector",
        "codebook_size": 16384,
        "levels": None,
        "distance": "sq_l2",
        "learn_widths": False,
        "temperature": 1.0,
        "straight_through": "soft",
        "commitment_weight": 1.0,
        "lambda_peak": 0.005,
        "lambda_usage": 0.005,
        "lambda_floor": 0.0,
        "min_perplexity": 0.0,
        "image_size": 256,
    }
    assert {name: getattr(config, name) for name in published} == published
    assert list(config.channel_multiplier) == [1, 2, 2, 2, 2]
    assert config.model_type == "lgq"


@pytest.mark.parametrize(
    ("fields", "factor", "dim", "groups", "tokens", "bits"),
    [
        ({}, 16, 64, 1, 256, 14 / 256),
        ({"channel_multiplier": [1]}, 1, 64, 1, 65536, 14.0),
        ({"channel_multiplier": (1, 2, 2), "image_size": 64, "codebook_size": 256}, 4, 64, 1, 256, 0.5),
        ({"code_dim": 12, "image_size": 100}, 16, 12, 1, 49, 14 / 256),
        ({"codebook_mode": "per_channel", "codebook_size": 8, "latent_channels": 5}, 16, 5, 5, 1280, 15 / 256),
        ({"codebook_mode": "per_channel", "codebook_size": 8, "code_dim": 2}, 16, 2, 2, 512, 6 / 256),
        (PRODUCT, 16, 3, 1, 256, 5 / 256),
    ],
)
def test_derived_sizes(fields: dict[str, Any], factor: int, dim: int, groups: int, tokens: int, bits: float) -> None:
    config = LGQConfig(**fields)
    assert config.spatial_downsample_factor == factor
    assert config.quantizer_dim == dim
    assert config.tokens_per_position == groups
    assert config.num_image_tokens == tokens
    assert config.bits_per_pixel == pytest.approx(bits, rel=1e-12)


def test_survives_a_file(tmp_path: Path) -> None:
    fields = {**PRODUCT, "channel_multiplier": [1, 3], "temperature": 0.25, "lambda_usage": 2, "image_size": 48}
    config = LGQConfig(**fields)
    config.save_pretrained(tmp_path)
    loaded = LGQConfig.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in fields} == fields
    saved, again = config.to_dict(), loaded.to_dict()
    assert {name: value for name, value in again.items() if name in saved} == saved
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == "lgq"
    assert written["levels"] == [4, 4, 2]


def test_tuples_are_saved_as_lists(tmp_path: Path) -> None:
    LGQConfig(**{**PRODUCT, "levels": (4, 4, 2)}, channel_multiplier=(1, 2)).save_pretrained(tmp_path)
    loaded = LGQConfig.from_pretrained(tmp_path)
    assert loaded.levels == [4, 4, 2]
    assert loaded.channel_multiplier == [1, 2]


def test_num_embeddings_is_the_codebook_size(tmp_path: Path) -> None:
    config = LGQConfig(num_embeddings=48)
    assert config.codebook_size == 48
    config.num_embeddings = 50
    assert config.codebook_size == 50
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["codebook_size"] == 50
    assert "num_embeddings" not in written


CONTRADICTIONS = [
    *(
        ({name: value}, rf"{name} must be at least 1, got {value}$")
        for name in (
            "in_channels",
            "base_channels",
            "num_res_blocks",
            "num_attention_heads",
            "latent_channels",
            "codebook_size",
            "image_size",
        )
        for value in (0, -3)
    ),
    ({"code_dim": 0}, "code_dim must be at least 1 or None, got 0"),
    ({"channel_multiplier": []}, r"channel_multiplier needs a positive width per stage, got \[\]"),
    ({"channel_multiplier": [1, 0, 2]}, r"channel_multiplier needs a positive width per stage, got \[1, 0, 2\]"),
    *(
        (
            {"decoder_num_res_blocks": blocks},
            "decoder_num_res_blocks needs 1 or more for each of the 5 stages of channel_multiplier, got "
            rf"\[{', '.join(map(str, blocks))}\]$",
        )
        for blocks in ([], [2, 2, 2, 2], [2, 2, 0, 2, 2])
    ),
    ({"levels": [128, 128]}, r"levels=\[128, 128\] needs codebook_mode='product' or quantizer='fsq', got 'vector'"),
    (
        {"levels": [4, 4, 2], "codebook_mode": "per_channel"},
        r"levels=\[4, 4, 2\] needs codebook_mode='product' or quantizer='fsq', got 'per_channel'",
    ),
    (
        {"codebook_mode": "per_channel", "distance": "cosine"},
        "'per_channel' compares scalars and has distance='sq_l2' only, got 'cosine'",
    ),
    ({**PRODUCT, "distance": "l2"}, "'product' compares scalars and has distance='sq_l2' only, got 'l2'"),
    ({**PRODUCT, "learn_widths": True}, "learn_widths is not defined for codebook_mode='product'"),
    ({**PRODUCT, "levels": None}, "'product' needs positive levels, one per channel, got None"),
    ({**PRODUCT, "levels": []}, r"'product' needs positive levels, one per channel, got \[\]"),
    ({**PRODUCT, "levels": [-4, -4, 2]}, r"'product' needs positive levels, one per channel, got \[-4, -4, 2\]"),
    ({**PRODUCT, "codebook_size": 31}, r"prod\(\[4, 4, 2\]\) = 32, got codebook_size=31"),
    ({**PRODUCT, "code_dim": 4}, "3 levels need code_dim=3, got 4"),
    ({**PRODUCT, "code_dim": None}, "3 levels need code_dim=3, got 64"),
    *(
        ({name: value, **fields}, rf"{name} must be positive and finite, got {value}$")
        for name, fields in (
            ("temperature", {}),
            ("entropy_temperature", {"quantizer": "lfq", "codebook_size": 2**8, "entropy_weight": 0.1}),
        )
        for value in (0.0, -1.0, math.inf, math.nan)
    ),
    *(
        ({name: value}, rf"{name} must be 0 or more and finite, got {value}")
        for name in ("commitment_weight", "lambda_peak", "lambda_usage", "lambda_floor", "min_perplexity")
        for value in (-0.5, math.inf, math.nan)
    ),
    *(
        (
            {"entropy_weight": value, "quantizer": "ibq", "distance": "dot"},
            rf"entropy_weight must be 0 or more.*{value}",
        )
        for value in (-0.5, math.inf, math.nan)
    ),
    ({"dead_code_threshold": -1.0}, r"dead_code_threshold must lie in \[0, 1\), got -1\.0: a share of even use"),
    ({"dead_code_threshold": 1.0}, r"dead_code_threshold must lie in \[0, 1\), got 1\.0: a share of even use"),
    (
        {"dead_code_threshold": 0.1, "learn_widths": True},
        "leaves their widths: set learn_widths=False",
    ),
    ({"codebook_decay": 0.9}, "codebook_decay=0.9 does nothing without dead_code_threshold or codebook_update='ema'"),
    (
        {"quantizer": "lfq", "codebook_size": 2**8, "entropy_bits": 4},
        "entropy_bits=4 does nothing without entropy_weight: leave it at None",
    ),
    (
        {"quantizer": "lfq", "codebook_size": 2**8, "entropy_temperature": 1.0},
        "entropy_temperature=1.0 does nothing without entropy_weight",
    ),
    (
        {"quantizer": "simvq", "commitment_weight": 0.25},
        "commitment_weight=0.25 does nothing without learn_projection",
    ),
    *(
        ({**fields, name: value}, rf"{name}={value!r} has a meaning for")
        for fields, name, value in (
            ({"quantizer": "fsq", "levels": [4, 4], "code_dim": 2, "codebook_size": 16}, "commitment_weight", 0.5),
            ({"quantizer": "ibq", "distance": "dot"}, "dead_code_threshold", 0.1),
            ({"quantizer": "simvq"}, "codebook_decay", 0.9),
            ({"quantizer": "vq"}, "entropy_temperature", 0.5),
            ({"quantizer": "ibq", "distance": "dot"}, "entropy_bits", 2),
            ({"quantizer": "vq"}, "lambda_usage", 0.1),
            ({"quantizer": "vq"}, "straight_through", "identity"),
            ({"quantizer": "vq"}, "learn_widths", True),
            ({"quantizer": "vq"}, "codebook_mode", "per_channel"),
        )
    ),
    ({"quantizer": "vq", "levels": [4, 4]}, "levels=.* has a meaning for quantizer='lgq' or 'fsq' only"),
    (
        {"quantizer": "lfq", "codebook_size": 2**8, "entropy_bits": 0, "entropy_weight": 0.1},
        "entropy_bits must divide the 8 bits.*got 0",
    ),
    (
        {"quantizer": "lfq", "codebook_size": 2**21, "latent_channels": 21, "entropy_weight": 0.1},
        r"counts 2 \*\* 21",
    ),
    (
        {"quantizer": "fsq", "levels": [1003], "code_dim": 1, "codebook_size": 1003},
        r"quantizer='fsq' has up to 1000 levels, by the published margin, got \[1003\]",
    ),
    ({"codebook_decay": 1.0}, r"codebook_decay must lie in \[0, 1\), got 1\.0"),
    ({"codebook_decay": -0.1}, r"codebook_decay must lie in \[0, 1\), got -0\.1"),
    ({"commitment_weight": 0.25}, "commitment_weight=0.25 needs straight_through='identity'"),
    ({**PRODUCT, "dead_code_threshold": 0.1}, "dead_code_threshold=0.1 needs codebook_mode='vector', got 'product'"),
    (
        {"quantizer": "vq", "distance": "cosine", "codebook_update": "ema"},
        "codebook_update='ema' averages latents and has distance='sq_l2', got 'cosine'",
    ),
    ({"quantizer": "fsq"}, "quantizer='fsq' needs levels of at least 2, one per channel, got None"),
    (
        {"quantizer": "fsq", "levels": [4, 1], "code_dim": 2, "codebook_size": 4},
        r"quantizer='fsq' needs levels of at least 2, one per channel, got \[4, 1\]",
    ),
    (
        {"quantizer": "fsq", "levels": [4, 4], "code_dim": 2},
        r"codebook_size must be the product of levels: prod\(\[4, 4\]\) = 16, got codebook_size=16384",
    ),
    (
        {"quantizer": "fsq", "levels": [4, 4], "codebook_size": 16},
        "quantizer='fsq' quantizes one channel per level: 2 levels need code_dim=2, got 64",
    ),
    ({"quantizer": "bsq", "codebook_size": 48}, "quantizer='bsq' has codebook_size = 2 \\*\\* bits"),
    (
        {"quantizer": "bsq", "codebook_size": 2**8, "entropy_bits": 3, "entropy_weight": 0.1},
        "entropy_bits must divide the 8 bits of a token, got 3",
    ),
    (
        {"quantizer": "lfq", "codebook_size": 2**32, "entropy_weight": 0.1},
        r"the entropy term counts 2 \*\* 32 codes for each row: set entropy_bits to a divisor of 32",
    ),
    # fields that the quantizer at hand does not read
    ({"rotation_trick": True}, "rotation_trick=True has a meaning for quantizer='vq' only, got 'lgq'"),
    ({"learn_projection": True}, "learn_projection=True has a meaning for quantizer='simvq' only, got 'lgq'"),
    ({"codebook_update": "ema"}, "codebook_update='ema' has a meaning for quantizer='vq' only, got 'lgq'"),
    ({"fsq_bound": "sigmoid"}, "fsq_bound='sigmoid' has a meaning for quantizer='fsq' only, got 'lgq'"),
    (
        {"entropy_weight": 0.1},
        "entropy_weight=0.1 has a meaning for quantizer='ibq' or 'lfq' or 'bsq' only, got 'lgq'",
    ),
    (
        {"quantizer": "vq", "learn_temperature": True},
        "learn_temperature=True has a meaning for quantizer='lgq' only, got 'vq'",
    ),
]


@pytest.mark.parametrize(("fields", "message"), CONTRADICTIONS)
def test_refuses_contradictions(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        LGQConfig(**fields)


WRONG_VALUES = [
    ("codebook_size", 512.0, "expected int, got float"),
    ("codebook_size", True, "expected int, got bool"),
    ("base_channels", "128", "expected int, got str"),
    ("code_dim", 2.5, "doesn't match any type"),
    ("channel_multiplier", 2, "doesn't match any type"),
    ("channel_multiplier", [1, "2"], "Invalid item at index 1"),
    ("levels", [4, 4.0], "Invalid item at index 1"),
    ("bottleneck_attention", 1, "expected bool, got int"),
    ("temperature", "1.0", "doesn't match any type"),
    ("distance", "euclidean", r"expected one of \('sq_l2', 'l2', 'cosine', 'dot'\), got euclidean"),
    ("codebook_mode", "scalar", "expected one of .*'vector', 'per_channel', 'product'.*got scalar"),
    ("straight_through", "gumbel", "expected one of .*'soft', 'identity'.*got gumbel"),
    ("quantizer", "lgp", "expected one of .*'lgq'.*got lgp"),
    ("backbone", "resnet", "expected one of .*'lgq'.*got resnet"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG_VALUES)
def test_refuses_wrong_types_and_unknown_values(name: str, value: object, message: str) -> None:
    with pytest.raises(StrictDataclassFieldValidationError, match=rf"(?s)'{name}'.*{message}"):
        LGQConfig(**{name: value})
    with pytest.raises(StrictDataclassFieldValidationError, match=rf"(?s)'{name}'.*{message}"):
        setattr(LGQConfig(), name, value)


def test_refuses_positional_arguments() -> None:
    with pytest.raises(ValueError, match="accepts only keyword arguments"):
        LGQConfig("lgq")


def test_a_contradiction_made_later_is_not_saved(tmp_path: Path) -> None:
    config = LGQConfig(**PRODUCT)
    config.codebook_size = 64
    with pytest.raises(StrictDataclassClassValidationError, match="got codebook_size=64"):
        config.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_a_contradiction_in_a_file_is_refused(tmp_path: Path) -> None:
    LGQConfig().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "temperature": -1}))
    with pytest.raises(StrictDataclassClassValidationError, match="temperature must be positive and finite, got -1"):
        LGQConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        PRODUCT,
        {"straight_through": "identity", "commitment_weight": 0.25},
        {"codebook_mode": "per_channel", "learn_widths": True, "codebook_size": 2},
        {"distance": "dot", "learn_widths": True, "codebook_size": 1, "lambda_peak": 0, "temperature": 1},
    ],
)
def test_accepts(fields: dict[str, Any]) -> None:
    config = LGQConfig(**fields)
    assert {name: getattr(config, name) for name in fields} == fields


VQGAN = {"backbone": "vqgan", "base_channels": 32, "latent_channels": 12}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"stem_channels": 64},
            r"stem_channels=64 has a meaning for backbone='vqgan' only, got 'lgq': leave it at None",
        ),
        ({"attention_levels": [1]}, "attention_levels=\\[1\\] has a meaning for backbone='vqgan' only"),
        ({"norm_eps": 1e-5}, "norm_eps=1e-05 has a meaning for backbone='vqgan' only"),
        ({**VQGAN, "legacy_decoder": True}, "legacy_decoder=True has a meaning for backbone='lgq' only, got 'vqgan'"),
        (
            {**VQGAN, "decoder_num_res_blocks": [2] * 5},
            r"decoder_num_res_blocks=\[2, 2, 2, 2, 2\] has a meaning for backbone='lgq' only, got 'vqgan'",
        ),
        ({**VQGAN, "num_attention_heads": 2}, "num_attention_heads=2 has a meaning for backbone='lgq' only"),
        ({**VQGAN, "norm_num_groups": 24}, r"norm_num_groups=24 does not divide the stage widths \[32, 64\]"),
        ({**VQGAN, "stem_channels": 48}, r"norm_num_groups=32 does not divide the stage widths \[48\]"),
        ({**VQGAN, "attention_levels": [5, -1]}, r"attention_levels must rise and not repeat, got \[5, -1\]"),
        ({**VQGAN, "attention_levels": [-1, 5]}, r"attention_levels must lie in 0\.\.4, one per stage, got \[-1, 5\]"),
        ({**VQGAN, "attention_levels": [4, 4]}, r"attention_levels must rise and not repeat, got \[4, 4\]"),
        ({"quantizer": "lfq", "codebook_size": 2**63, "latent_channels": 63}, "with 1 to 62 bits, got 9223"),
        ({"image_size": 10**400}, "image_size is the side of a picture in pixels, at most 65536"),
        ({**VQGAN, "num_mid_blocks": 0}, "num_mid_blocks must be at least 1, got 0"),
        ({**VQGAN, "stem_channels": 0}, "stem_channels must be at least 1, got 0"),
        ({**VQGAN, "norm_eps": 0.0}, "norm_eps must be positive and finite, got 0.0"),
        ({"quantizer": "ibq"}, "quantizer='ibq' has distance='dot', got 'sq_l2'"),
        ({"quantizer": "vq", "distance": "l2"}, "quantizer='vq' has distance='sq_l2' or 'cosine', got 'l2'"),
        ({"quantizer": "vq", "temperature": 0.5}, "temperature=0.5 has a meaning for quantizer='lgq' only, got 'vq'"),
        ({"quantizer": "lfq", "lambda_peak": 0.1}, "lambda_peak=0.1 has a meaning for quantizer='lgq' only"),
        (
            {"quantizer": "lfq", "codebook_size": 12},
            r"quantizer='lfq' has codebook_size = 2 \*\* bits with 1 to 62 bits, got 12",
        ),
        (
            {"quantizer": "lfq", "codebook_size": 1},
            r"quantizer='lfq' has codebook_size = 2 \*\* bits with 1 to 62 bits, got 1",
        ),
        (
            {**VQGAN, "quantizer": "lfq", "codebook_size": 32},
            "makes a token of 5 channels, which do not divide the 12",
        ),
    ],
)
def test_fields_of_other_backbones_and_quantizers(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        LGQConfig(**fields)


@pytest.mark.parametrize(("fields"), [{"encoder_out_kernel": 2}, {"downsample": "max_pool"}, {"quantizer": "gumbel"}])
def test_values_that_no_member_of_the_family_has(fields: dict[str, Any]) -> None:
    with pytest.raises(StrictDataclassFieldValidationError, match=next(iter(fields))):
        LGQConfig(**{**VQGAN, **fields})


def test_signs_make_tokens_by_groups_of_channels() -> None:
    config = LGQConfig(**VQGAN, quantizer="lfq", codebook_size=16, image_size=64)
    assert config.tokens_per_position == 3
    assert config.num_image_tokens == 48
    assert config.bits_per_pixel == pytest.approx(12 / 256)
