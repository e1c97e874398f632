"""Models to the official trainer's dictionary, and back without a difference."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conversion.export_lgq_official import export_lgq_official
from conversion.lgq_official import plan
from lgq_hf import LGQConfig, LGQModel

FIXTURES = Path(__file__).parents[1] / "fixtures" / "lgq_official"
MODES = sorted(folder.name for folder in FIXTURES.glob("lgq_*"))
SMALL = {"base_channels": 4, "latent_channels": 8, "codebook_size": 16, "image_size": 64}
OURS = {
    "vector": {},
    "widths": {"learn_widths": True, "temperature": 0.3},
    "cosine": {"distance": "cosine", "lambda_floor": 0.1, "min_perplexity": 5},
    "dot": {"distance": "dot", "legacy_decoder": True},
    "projected": {"code_dim": 3},
    "projected widths": {"code_dim": 3, "learn_widths": True, "distance": "cosine"},
    "per_channel": {"codebook_mode": "per_channel"},
    "per_channel widths": {"codebook_mode": "per_channel", "learn_widths": True},
    "square": {"codebook_size": 8},
    "square per_channel": {"codebook_size": 8, "codebook_mode": "per_channel"},
    "product": {"codebook_mode": "product", "levels": [2, 5, 3], "code_dim": 3, "codebook_size": 30},
}


def small(**fields: object) -> LGQModel:
    torch.manual_seed(0)
    model = LGQModel(LGQConfig(**{**SMALL, **fields}))
    if model.config.codebook_mode == "product":  # places the bins, as training does
        model.quantizer.init_from(torch.randn(2, model.config.quantizer_dim, 4, 4))
    return model.eval()


def assert_same_model(found: dict, config: LGQConfig, tensors: dict[str, torch.Tensor]) -> None:
    again = plan(found)
    assert json.loads(again.config.to_json_string()) == json.loads(config.to_json_string())
    assert again.tensors.keys() == tensors.keys()
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("mode", MODES)
def test_recorded_checkpoints_survive(mode: str, tmp_path: Path) -> None:
    state = load_file(FIXTURES / mode / "official_model.safetensors")
    config = json.loads((FIXTURES / mode / "official_config.json").read_text())
    made = plan({"model_state_dict": state, "config": config})
    model = LGQModel(made.config)
    model.load_state_dict(made.tensors)
    torch.save(export_lgq_official(model), tmp_path / "best_model.pt")
    found = torch.load(tmp_path / "best_model.pt", weights_only=True)
    assert found["model_state_dict"].keys() == state.keys()
    for key, tensor in found["model_state_dict"].items():
        assert tensor.shape == state[key].shape and tensor.dtype == state[key].dtype
        if "_dbg_" in key:
            assert not tensor.any()
        else:
            assert torch.equal(tensor, state[key]), key
    fair = "levels" in mode
    shared = config.keys() if fair else config.keys() - {"lmb_levels"}
    assert {name: found["config"][name] for name in shared} == {name: config[name] for name in shared}
    assert found["config"]["perchannel_fair"] is fair
    assert_same_model(found, made.config, made.tensors)


@pytest.mark.parametrize("name", OURS)
def test_our_own_models_survive(name: str, tmp_path: Path) -> None:
    model = small(**OURS[name])
    torch.save(export_lgq_official(model), tmp_path / "best_model.pt")
    found = torch.load(tmp_path / "best_model.pt", weights_only=True)
    assert_same_model(found, model.config, model.state_dict())


def test_the_dictionary() -> None:
    found = export_lgq_official(small(**OURS["cosine"]))
    state = found.pop("model_state_dict")
    assert found["config"].pop("lambda_peak") == 0.005
    assert found == {
        "epoch": 0,
        "model_type": "lgq",
        "run_name": "lgq_hf",
        "config": {
            "model": "lgq",
            "dim": 8,
            "embedding_dim": 8,
            "compression_factor": 16,
            "num_residual_layers": 2,
            "legacy_decoder": False,
            "image_size": 64,
            "num_bins": 16,
            "lambda_bins": 0.005,
            "lambda_floor": 0.1,
            "p_min": 5,
            "tau_start": 1.0,
            "tau_end": 1.0,
            "learn_widths": False,
            "flatten_channels": True,
            "distance_type": "cosine",
            "perchannel_fair": False,
        },
    }
    assert state["quantize._inited"].item() == 1 and state["quantize._inited"].dtype == torch.uint8
    assert state["quantize._dbg_usage"].shape == (16,) and state["quantize._dbg_avg_max_p"].shape == ()


def test_buffers_of_the_scalar_modes() -> None:
    state = export_lgq_official(small(**OURS["per_channel"]))["model_state_dict"]
    assert state["quantize._dbg_usage"].shape == (8, 16) and "quantize._dbg_soft_perplexity" in state
    state = export_lgq_official(small(**OURS["product"]))["model_state_dict"]
    assert state["quantize._dbg_usage"].shape == (3, 5) and "quantize._dbg_soft_perplexity" not in state


def test_levels() -> None:
    assert export_lgq_official(small(**OURS["product"]))["config"]["lmb_levels"] == [2, 5, 3]
    projected = export_lgq_official(small(**OURS["projected"]))["config"]
    assert projected["lmb_levels"] == [16, 1, 1] and projected["flatten_channels"] is True


def test_bins_that_no_token_stands_for_become_zero() -> None:
    model = small(**OURS["product"])
    wanted = model.quantizer.centers.detach().clone()
    with torch.no_grad():
        model.quantizer.centers[0, 2:] = 7.0
    assert torch.equal(export_lgq_official(model)["model_state_dict"]["quantize.centers"], wanted)
    assert (model.quantizer.centers[0, 2:] == 7).all()


def test_the_temperature_that_training_left() -> None:
    model = small(temperature=0.3)
    assert export_lgq_official(model)["config"]["tau_end"] == 0.3
    model.quantizer.set_temperature(0.25)
    found = export_lgq_official(model)
    assert found["config"]["tau_start"] == found["config"]["tau_end"] == 0.25
    assert torch.equal(plan(found).tensors["quantizer.temperature"], torch.tensor(0.25))


def test_copies_are_returned() -> None:
    model = small()
    state = export_lgq_official(model)["model_state_dict"]
    state["quantize.centers"].zero_()
    assert model.quantizer.centers.any() and not state["quantize.centers"].requires_grad


def test_what_only_our_training_has_stays_behind() -> None:
    model = small(straight_through="identity", commitment_weight=0.25)
    again = plan(export_lgq_official(model))
    assert again.config.straight_through == "soft"
    other = LGQModel(again.config).eval()
    other.load_state_dict(again.tensors)
    pixels = torch.randn(1, 3, 32, 32)
    assert torch.equal(other.encode(pixels).image_tokens, model.encode(pixels).image_tokens)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"in_channels": 1}, "in_channels=1: the trainer's models take 3 channels"),
        (
            {"channel_multiplier": [1, 2, 4]},
            r"channel_multiplier=\[1, 2, 4\]: its stages always have \[1, 2, 2, 2, 2\]",
        ),
        ({"num_res_blocks": 1}, "num_res_blocks=1: it always has 2 per stage"),
        (
            {"decoder_num_res_blocks": [2, 2, 2, 2, 3]},
            r"decoder_num_res_blocks=\[2, 2, 2, 2, 3\]: it always has 2 per stage",
        ),
        ({"bottleneck_attention": False}, "bottleneck_attention=False: the trainer's models always have it"),
        ({"latent_group_norm": False}, "latent_group_norm=False: the trainer's models always have it"),
        ({"num_attention_heads": 8}, "num_attention_heads=8: it always has 4"),
        ({"distance": "l2"}, r"distance='l2': expected one of \['cosine', 'dot', 'sq_l2'\]"),
        (
            {"codebook_mode": "per_channel", "code_dim": 2},
            "code_dim=2: with codebook_mode='per_channel' it never has projections",
        ),
        (
            {"codebook_mode": "product", "levels": [2] * 8, "codebook_size": 256},
            "code_dim=None: with codebook_mode='product' it always has projections",
        ),
        ({"base_channels": 9}, "base_channels=9 gives a stage of 18 channels, which 4 heads do not divide"),
        ({"base_channels": 40}, "base_channels=40 gives a stage of 80 channels, which 32 groups do not divide"),
        (
            {"latent_channels": 40, "legacy_decoder": True},
            "latent_channels=40 gives a stage of 40 channels, which 32 groups do not divide",
        ),
        ({"num_res_blocks": 3, "in_channels": 1}, "in_channels=1: .*; num_res_blocks=3: "),
    ],
)
def test_what_the_official_code_has_no_place_for(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"the official LGQ code has no such model. .*{message}"):
        export_lgq_official(small(**fields))


@pytest.mark.parametrize("field", ["backbone", "quantizer"])
def test_other_families_are_refused(field: str) -> None:
    model = small()
    object.__setattr__(model.config, field, "other")
    with pytest.raises(ValueError, match=f"{field}='other': expected 'lgq'"):
        export_lgq_official(model)
