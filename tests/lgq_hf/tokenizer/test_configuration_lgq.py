"""The configuration: what it derives, what it refuses, and that it survives a file."""

import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError

from lgq_hf import LGQConfig, LGQImageProcessor

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


VQGAN = {"backbone": "vqgan", "base_channels": 32, "latent_channels": 12}
LFQ = {"quantizer": "lfq", "codebook_size": 2**8}
FSQ = {"quantizer": "fsq", "levels": [4, 4], "code_dim": 2, "codebook_size": 16}
IBQ = {"quantizer": "ibq", "distance": "dot"}

# what is refused, and what the message must name
CONTRADICTIONS = [
    *(
        ({name: 0}, f"{name} .*got 0")
        for name in (
            *("in_channels", "base_channels", "num_res_blocks", "num_attention_heads", "latent_channels"),
            *("codebook_size", "image_size", "code_dim"),
        )
    ),
    ({"image_size": 10**400}, "image_size .*65536"),
    ({"channel_multiplier": []}, r"channel_multiplier .*got \[\]"),
    ({"channel_multiplier": [1, 0, 2]}, r"channel_multiplier .*got \[1, 0, 2\]"),
    ({"decoder_num_res_blocks": [2, 2, 2, 2]}, r"decoder_num_res_blocks .*5 stages.*got \[2, 2, 2, 2\]"),
    ({"decoder_num_res_blocks": [2, 2, 0, 2, 2]}, r"decoder_num_res_blocks .*got \[2, 2, 0, 2, 2\]"),
    ({"levels": [128, 128]}, r"levels=\[128, 128\] .*got 'vector'"),
    ({"codebook_mode": "per_channel", "distance": "cosine"}, "'per_channel' .*got 'cosine'"),
    ({**PRODUCT, "distance": "l2"}, "'product' .*got 'l2'"),
    ({**PRODUCT, "learn_widths": True}, "learn_widths .*'product'"),
    ({**PRODUCT, "levels": None}, "'product' needs positive levels.*None"),
    ({**PRODUCT, "levels": [-4, -4, 2]}, r"'product' needs positive levels.*\[-4, -4, 2\]"),
    ({**PRODUCT, "codebook_size": 31}, "32, got codebook_size=31"),
    ({**PRODUCT, "code_dim": 4}, "code_dim=3, got 4"),
    ({**PRODUCT, "dead_code_threshold": 0.1}, "dead_code_threshold=0.1 .*got 'product'"),
    ({"temperature": 0.0}, "temperature .*got 0.0"),
    ({"temperature": math.nan}, "temperature .*got nan"),
    ({**LFQ, "entropy_weight": 0.1, "entropy_temperature": math.inf}, "entropy_temperature .*got inf"),
    *(
        ({name: value}, f"{name} .*got {value}")
        for name, value in (
            *(("commitment_weight", -0.5), ("lambda_peak", math.nan), ("lambda_usage", math.inf)),
            *(("lambda_floor", -0.5), ("min_perplexity", -1.0)),
        )
    ),
    ({**IBQ, "entropy_weight": -0.5}, "entropy_weight .*got -0.5"),
    ({"dead_code_threshold": 1.0}, "dead_code_threshold .*got 1.0"),
    ({"dead_code_threshold": 0.1, "learn_widths": True}, "learn_widths=False"),
    ({"codebook_decay": 1.0, "dead_code_threshold": 0.1}, "codebook_decay .*got 1.0"),
    ({"commitment_weight": 0.25}, "commitment_weight=0.25 needs straight_through='identity'"),
    ({"quantizer": "vq", "distance": "cosine", "codebook_update": "ema"}, "codebook_update='ema' .*got 'cosine'"),
    ({"quantizer": "fsq"}, "quantizer='fsq' .*levels.*None"),
    ({**FSQ, "levels": [16, 1]}, r"levels .*got \[16, 1\]"),
    ({**FSQ, "levels": [1003], "code_dim": 1, "codebook_size": 1003}, r"1000 levels.*got \[1003\]"),
    ({**FSQ, "codebook_size": 17}, "16, got codebook_size=17"),
    ({**FSQ, "code_dim": None}, "code_dim=2, got 64"),
    ({"quantizer": "bsq", "codebook_size": 48}, r"2 \*\* bits .*got 48"),
    ({"quantizer": "lfq", "codebook_size": 2**63, "latent_channels": 63}, "1 to 62 bits"),
    ({**LFQ, "latent_channels": 12}, "8 channels, .* 12 channels"),
    ({**LFQ, "entropy_bits": 3, "entropy_weight": 0.1}, "entropy_bits must divide the 8 bits.*got 3"),
    ({**LFQ, "codebook_size": 2**32, "entropy_weight": 0.1}, r"2 \*\* 32 codes.*entropy_bits"),
    ({**VQGAN, "norm_num_groups": 24}, r"norm_num_groups=24 .*\[32, 64\]"),
    ({**VQGAN, "stem_channels": 48}, r"norm_num_groups=32 .*\[48\]"),
    ({**VQGAN, "attention_levels": [4, 4]}, r"attention_levels .*\[4, 4\]"),
    ({**VQGAN, "attention_levels": [-1, 5]}, r"attention_levels .*0\.\.4.*\[-1, 5\]"),
    ({**VQGAN, "num_mid_blocks": 0}, "num_mid_blocks .*got 0"),
    ({**VQGAN, "norm_eps": 0.0}, "norm_eps .*got 0.0"),
    ({"quantizer": "ibq"}, "quantizer='ibq' .*'dot', got 'sq_l2'"),
    ({"quantizer": "vq", "distance": "l2"}, "quantizer='vq' .*got 'l2'"),
]


@pytest.mark.parametrize(("fields", "message"), CONTRADICTIONS)
def test_refuses_contradictions(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        LGQConfig(**fields)


# a field with another value than its default that nothing reads, beside the fields that make it so, and what it needs
UNREAD: list[tuple[dict[str, Any], str, Any, str]] = [
    ({}, "stem_channels", 64, "backbone='vqgan'"),
    ({}, "norm_eps", 1e-5, "backbone='vqgan'"),
    (VQGAN, "legacy_decoder", True, "backbone='lgq'"),
    (VQGAN, "decoder_num_res_blocks", [2] * 5, "backbone='lgq'"),
    ({}, "rotation_trick", True, "quantizer='vq'"),
    ({}, "codebook_update", "ema", "quantizer='vq'"),
    ({}, "learn_projection", True, "quantizer='simvq'"),
    ({}, "fsq_bound", "sigmoid", "quantizer='fsq'"),
    ({}, "entropy_weight", 0.1, "quantizer='ibq' or quantizer='lfq'"),
    ({"quantizer": "vq"}, "temperature", 0.5, "quantizer='lgq'"),
    ({"quantizer": "vq"}, "levels", [4, 4], "quantizer='lgq' or quantizer='fsq'"),
    ({"quantizer": "vq"}, "codebook_mode", "per_channel", "quantizer='lgq'"),
    (LFQ, "lambda_peak", 0.1, "quantizer='lgq'"),
    (FSQ, "commitment_weight", 0.5, "quantizer='lgq'"),
    (IBQ, "dead_code_threshold", 0.1, "quantizer='lgq' or quantizer='vq'"),
    ({}, "codebook_decay", 0.9, "dead_code_threshold"),
    (LFQ, "entropy_bits", 4, "entropy_weight"),
    (LFQ, "entropy_temperature", 1.0, "entropy_weight"),
    ({"quantizer": "simvq"}, "commitment_weight", 0.25, "learn_projection"),
]


@pytest.mark.parametrize(("fields", "name", "value", "needed"), UNREAD)
def test_a_field_without_effect_is_refused_but_for_a_checkpoint(
    fields: dict[str, Any], name: str, value: Any, needed: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(StrictDataclassClassValidationError, match=f"{name}=.* does nothing without {needed}"):
        LGQConfig(**fields, **{name: value})
    LGQConfig(**fields).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    default = file.read_text()  # and of a version with another one:
    file.write_text(json.dumps({**json.loads(default), name: value}))
    with heard(caplog):
        loaded = LGQConfig.from_pretrained(tmp_path)
    assert loaded.to_dict()[name] == json.loads(default)[name]
    assert name in caplog.text


def test_unknown_fields_and_options_of_a_checkpoint_give_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    LGQConfig(code_dim=12).save_pretrained(tmp_path)
    LGQImageProcessor(pad_to_multiple_of=16).save_pretrained(tmp_path)
    with heard(caplog):
        LGQConfig.from_pretrained(tmp_path)
        LGQImageProcessor.from_pretrained(tmp_path)
    assert not caplog.records
    for name in ("config.json", "preprocessor_config.json"):
        file = tmp_path / name
        file.write_text(json.dumps({**json.loads(file.read_text()), "of_tomorrow": 3}))
        with heard(caplog):
            assert LGQConfig.from_pretrained(tmp_path).code_dim == 12
            assert LGQImageProcessor.from_pretrained(tmp_path).pad_to_multiple_of == 16
        assert f"{name} has" in caplog.text and "of_tomorrow" in caplog.text
        caplog.clear()


@contextmanager
def heard(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Lets transformers' loggers, which keep to themselves, be heard."""
    logger = logging.getLogger("transformers")
    ours = logging.getLogger("lgq_hf")
    for one in (logger, ours):
        one.addHandler(caplog.handler)
    try:
        yield
    finally:
        for one in (logger, ours):
            one.removeHandler(caplog.handler)


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


@pytest.mark.parametrize(("fields"), [{"encoder_out_kernel": 2}, {"downsample": "max_pool"}, {"quantizer": "gumbel"}])
def test_values_that_no_member_of_the_family_has(fields: dict[str, Any]) -> None:
    with pytest.raises(StrictDataclassFieldValidationError, match=next(iter(fields))):
        LGQConfig(**{**VQGAN, **fields})


def test_signs_make_tokens_by_groups_of_channels() -> None:
    config = LGQConfig(**VQGAN, quantizer="lfq", codebook_size=16, image_size=64)
    assert config.tokens_per_position == 3
    assert config.num_image_tokens == 48
    assert config.bits_per_pixel == pytest.approx(12 / 256)
