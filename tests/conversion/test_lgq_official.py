"""Parity with tensors recorded from the paper's own code: see tests/fixtures/lgq_official/README.md."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conversion.export_lgq_official import export_lgq_official
from conversion.lgq_official import plan, recognise
from conversion.plan import CheckpointError
from lgq_hf import LGQConfig, LGQImageProcessor, LGQModel

FIXTURES = Path(__file__).parents[1] / "fixtures" / "lgq_official"
MODES = sorted(folder.name for folder in FIXTURES.glob("lgq_*"))
TAUS = [1.0, 0.1]
# squared-l2 gradients cancel in the official code's fp32 matrix form of cdist, and a little in our fp32 form
GRADIENT_RTOL = {torch.float32: 3e-3, torch.float64: 1e-3}


@dataclasses.dataclass
class Case:
    name: str
    checkpoint: dict
    expected: dict[str, torch.Tensor]

    def model(self, **changes: object) -> LGQModel:
        made = plan(self.checkpoint)
        model = LGQModel(LGQConfig(**{**made.config.to_diff_dict(), **changes}))
        model.load_state_dict(made.tensors)
        return model.eval()

    def grid(self, name: str) -> torch.Tensor:
        """A recorded (B, C, T) tensor as (B, C, sqrt T, sqrt T)."""
        tensor = self.expected[name]
        side = int(tensor.shape[2] ** 0.5)
        return tensor.unflatten(2, (side, side))

    def tokens(self, indices: torch.Tensor) -> torch.Tensor:
        """Recorded indices (B, T) or (B, T, C) as our tokens, flattened over the grid."""
        if "levels" not in self.name:
            return indices.long()
        levels = self.checkpoint["config"]["lmb_levels"]
        return torch.from_numpy(np.ravel_multi_index(indices.long().numpy().transpose(2, 0, 1), levels))


@pytest.fixture(params=MODES)
def case(request: pytest.FixtureRequest) -> Case:
    folder = FIXTURES / request.param
    checkpoint = {
        "model_state_dict": load_file(folder / "official_model.safetensors"),
        "config": json.loads((folder / "official_config.json").read_text()),
    }
    return Case(request.param, checkpoint, load_file(folder / "expected.safetensors"))


def test_all_modes_are_recorded() -> None:
    assert len(MODES) == 6


def test_latents_tokens_and_reconstruction(case: Case) -> None:
    model = case.model()
    encoded = model.encode(case.expected["images"])
    torch.testing.assert_close(encoded.last_hidden_state, case.grid("latent"), rtol=1e-4, atol=2e-5)
    assert torch.equal(encoded.image_tokens.flatten(1, 2), case.tokens(case.expected["indices"]))
    torch.testing.assert_close(encoded.quantized_last_hidden_state, case.grid("quantized"), rtol=1e-5, atol=1e-6)
    decoded = model.decode(encoded.image_tokens).decoded_pixel_values
    torch.testing.assert_close(decoded, case.expected["reconstruction"], rtol=1e-4, atol=5e-5)


def test_encoder_output(case: Case) -> None:
    hidden_states = case.model().encoder(case.expected["images"])
    torch.testing.assert_close(hidden_states, case.expected["enc_out"], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_on_pictures(case: Case, tau: float, dtype: torch.dtype) -> None:
    quantizer = case.model().quantizer.to(dtype).train()
    quantizer.set_temperature(tau)
    result = quantizer(case.grid("latent").to(dtype))
    _compare_losses(case, f"e2e.tau{tau}", result.loss, result.statistics)


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_block_of_latents(case: Case, tau: float, dtype: torch.dtype) -> None:
    """Tokens, losses and both gradients on the larger block."""
    quantizer = case.model().quantizer.to(dtype).train()
    quantizer.set_temperature(tau)
    latents = case.grid("q.latent").to(dtype).requires_grad_()
    result = quantizer(latents)
    _compare_losses(case, f"q.tau{tau}", result.loss, result.statistics)
    recorded = case.expected.get(f"q.tau{tau}.indices", case.expected["q.tau1.0.indices"])
    _compare_tokens(case, result.image_tokens.flatten(1, 2), case.tokens(recorded))
    names = {"latent": latents, "centers": quantizer.centers}
    if quantizer.alpha is not None:
        names["alpha"] = quantizer.alpha
    objectives = {"grad_loss": result.loss, "grad_ste": (result.codes * case.grid("q.cotangent").to(dtype)).sum()}
    for kind, objective in objectives.items():
        gradients = torch.autograd.grad(objective, list(names.values()), retain_graph=True)
        for name, gradient in zip(names, gradients, strict=True):
            wanted = case.expected[f"q.tau{tau}.{kind}.{name}"].to(dtype)
            wanted = wanted.reshape(gradient.shape)
            rtol = GRADIENT_RTOL[dtype]
            torch.testing.assert_close(gradient, wanted, rtol=rtol, atol=rtol * float(wanted.abs().max()))


@pytest.mark.parametrize("tau", TAUS)
def test_soft_codes_and_usage(case: Case, tau: float) -> None:
    if f"q.tau{tau}.q_soft" not in case.expected:
        pytest.skip("not recorded for product mode")
    quantizer = case.model().quantizer
    quantizer.set_temperature(tau)
    x_NC = quantizer.to_rows(case.grid("q.latent"))
    if "perch" in case.name:
        parts = [quantizer._soft_assign(*channel) for channel in quantizer._channels(x_NC)]
        soft_NC = torch.cat([part.soft_codes_NC for part in parts], dim=1)
        usage = torch.stack([part.usage_K for part in parts])
    else:
        assigned = quantizer._soft_assign(x_NC, quantizer.centers, quantizer.widths)
        soft_NC, usage = assigned.soft_codes_NC, assigned.usage_K
    wanted = case.expected[f"q.tau{tau}.q_soft"].transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(soft_NC, wanted, rtol=1e-3, atol=2e-4)
    torch.testing.assert_close(usage, case.expected[f"q.tau{tau}.usage"], rtol=1e-3, atol=1e-6)


def _compare_losses(case: Case, prefix: str, loss: torch.Tensor, statistics: dict[str, torch.Tensor]) -> None:
    names = {"recon": "quantization_loss", "peak": "peak_loss", "bins": "usage_loss", "floor": "floor_loss"}
    found = {"total": loss} | {theirs: statistics[ours] for theirs, ours in names.items()}
    compared = 0
    for name, value in found.items():
        if (wanted := case.expected.get(f"{prefix}.loss.{name}")) is not None:
            torch.testing.assert_close(value.float(), wanted[0], rtol=2e-4, atol=1e-6)
            compared += 1
    assert compared >= 2
    for ours in ("soft_perplexity", "perplexity"):
        if "levels" in case.name and ours == "perplexity":
            continue  # recorded per channel there; ours counts whole tokens
        if "perch" in case.name and ours == "perplexity":
            continue  # the mean over channels there; ours pools them
        torch.testing.assert_close(
            statistics[ours].float(), case.expected[f"{prefix}.{ours}"][0], rtol=1e-3, atol=1e-3
        )


def _compare_tokens(case: Case, found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Equal wherever the two best logits are further apart than rounding can move them."""
    gap = case.expected.get("q.top2_logit_gap")
    clear = torch.ones(wanted.shape, dtype=torch.bool) if gap is None else (gap > 1e-6).reshape(wanted.shape)
    assert clear.float().mean() > 0.97
    assert torch.equal(found[clear], wanted[clear])


def test_plan_accounts_for_every_key(case: Case) -> None:
    made = plan(case.checkpoint)
    state = case.checkpoint["model_state_dict"]
    assert made.format == "lgq_official" and made.weights == "raw" and made.notes == []
    assert set(made.tensors) == set(made.sources) == set(LGQModel(made.config).state_dict())
    temperature = made.sources.pop("quantizer.temperature")
    assert temperature == "config.tau_end" and made.baked.keys() == {"quantizer.temperature"}
    assert torch.equal(made.tensors["quantizer.temperature"], torch.tensor(0.1)) and made.config.temperature == 0.1
    assert sorted([*made.sources.values(), *made.dropped]) == sorted(state)
    assert all(made.tensors[ours] is state[key] for ours, key in made.sources.items())
    assert {key.rpartition(".")[2] for key in made.dropped} <= {
        "_inited",
        "_dbg_usage",
        "_dbg_avg_max_p",
        "_dbg_soft_perplexity",
    }


def test_processor_normalises_as_imagenet_is(case: Case) -> None:
    processor = LGQImageProcessor(**plan(case.checkpoint).processor)
    picture = np.zeros((20, 32, 3), np.uint8)
    picture[..., 0] = 255
    pixels = processor(picture, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
    wanted = torch.tensor([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    torch.testing.assert_close(pixels[0, :, 0, 0], wanted)


def test_recognise(case: Case) -> None:
    assert recognise(case.checkpoint)
    assert recognise(case.checkpoint["model_state_dict"])  # for the reason why it is not converted
    assert recognise({"model_state_dict": {"module.enc.block_256.0.in_norm.weight": torch.ones(1)}})
    assert not recognise({"model_state_dict": [1]})
    assert not recognise({"state_dict": {}, "encoder.conv_in.weight": torch.ones(1)})


# Every error, on small models of each mode

VECTOR = {"codebook_size": 16}
PER_CHANNEL = {"codebook_size": 16, "codebook_mode": "per_channel"}
PROJECTED = {"codebook_size": 15, "code_dim": 2}
PRODUCT = {"codebook_size": 15, "code_dim": 2, "codebook_mode": "product", "levels": [5, 3]}


def official(**fields: object) -> dict:
    """A checkpoint of a small model, with all arguments that shapes are compared with."""
    torch.manual_seed(0)
    return export_lgq_official(LGQModel(LGQConfig(**{"base_channels": 4, "latent_channels": 8, **fields})))


def with_options(checkpoint: dict, **options: object) -> dict:
    return {**checkpoint, "config": {**checkpoint["config"], **options}}


def without_options(checkpoint: dict, *names: str) -> dict:
    return {**checkpoint, "config": {k: v for k, v in checkpoint["config"].items() if k not in names}}


def with_tensors(checkpoint: dict, **tensors: torch.Tensor | None) -> dict:
    """Tensors by key with `__` for a dot; `None` takes one out."""
    state = {**checkpoint["model_state_dict"], **{key.replace("__", "."): value for key, value in tensors.items()}}
    return {**checkpoint, "model_state_dict": {key: value for key, value in state.items() if value is not None}}


@pytest.mark.parametrize(
    ("fields", "field", "value", "message"),
    [
        (VECTOR, "dim", 10, "dim: 10 there, 8 in the tensors"),
        (VECTOR, "embedding_dim", 9, "embedding_dim: 9 there, 8 in"),
        (VECTOR, "num_bins", 32, "num_bins: 32 there, 16 in"),
        (VECTOR, "learn_widths", True, "learn_widths: True there, False in"),
        (VECTOR, "legacy_decoder", True, "legacy_decoder: True there, False in"),
        (VECTOR, "perchannel_fair", True, "perchannel_fair: True there, False in"),
        (
            VECTOR,
            "flatten_channels",
            False,
            r"flatten_channels is False .* shape \(8, K\).* got \(16, 8\), and \(16,\)",
        ),
        (PER_CHANNEL, "num_bins", 32, "num_bins: 32 there, 16 in"),
        (PER_CHANNEL, "flatten_channels", True, r"flatten_channels is True .* shape \(K, 8\).* got \(8, 16\)"),
        (PER_CHANNEL, "learn_widths", True, "learn_widths: True there, False in"),
        (PROJECTED, "perchannel_fair", False, "perchannel_fair: False there, True in"),
        (PROJECTED, "lmb_levels", [15], r"lmb_levels: \[15\] there, '2 levels with the product 15' in"),
        (PROJECTED, "lmb_levels", [4, 4], r"lmb_levels: \[4, 4\] there, '2 levels with the product 15' in"),
        (VECTOR, "dim", "8", "dim: '8' there, 8 in the tensors"),
        (PROJECTED, "lmb_levels", ["a", 15], r"lmb_levels in .* expected integers, got \['a', 15\]"),
        (PROJECTED, "lmb_levels", 15, r"lmb_levels: \[15\] there"),
        (PRODUCT, "lmb_levels", [3, 5], r"lmb_levels: \[3, 5\] there, \[5, 3\] in"),
        (PRODUCT, "lmb_levels", [5, 5], r"lmb_levels: \[5, 5\] there, \[5, 3\] in"),
        (PRODUCT, "lmb_levels", [], r"perchannel_fair: False there, True in .*lmb_levels: \[\] there"),
        (PRODUCT, "flatten_channels", True, r"flatten_channels is True .* shape \(K, 2\).* got \(2, 5\)"),
        (VECTOR, "model", "fsq", "config.model is 'fsq': .*only \\('lgq', 'lmb'\\) are converted"),
        (VECTOR, "distance_type", "l1", "distance_type .* expected one of .*'l2_sq', 'cosine', 'dot'.* got 'l1'"),
        (VECTOR, "tau_end", 0, "temperature must be positive"),
        (VECTOR, "tau_end", None, "tau_end in the checkpoint's config: expected a number of at least 0, got None"),
        (VECTOR, "lambda_peak", -1, "lambda_peak in .*got -1"),
        (VECTOR, "lambda_bins", "a", "lambda_bins in .*got 'a'"),
        (VECTOR, "lambda_floor", float("nan"), "lambda_floor in .*got nan"),
        (VECTOR, "p_min", True, "p_min in .*got True"),
        (VECTOR, "image_size", 0, "image_size must be at least 1"),
    ],
)
def test_arguments_that_differ_are_refused(fields: dict, field: str, value: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        plan(with_options(official(**fields), **{field: value}))


@pytest.mark.parametrize("name", ["tau_end", "lambda_peak", "lambda_bins", "lambda_floor", "p_min", "image_size"])
def test_arguments_that_decide_are_needed(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"config lacks {name}"):
        plan(without_options(official(**VECTOR), name))


def test_arguments_that_decide_nothing_are_not_needed() -> None:
    shapes = ("model", "dim", "embedding_dim", "num_bins", "learn_widths", "legacy_decoder", "perchannel_fair")
    for fields in (VECTOR, PROJECTED, PER_CHANNEL, PRODUCT):
        checkpoint = official(**fields)
        assert plan(without_options(checkpoint, *shapes)).config.to_dict() == plan(checkpoint).config.to_dict()
    assert plan(without_options(official(**PROJECTED), "lmb_levels")).config.codebook_size == 15
    with pytest.raises(CheckpointError, match="config lacks lmb_levels, the number of bins of each channel"):
        plan(without_options(official(**PRODUCT), "lmb_levels"))


def test_arguments_that_the_official_code_does_not_read_are_not_compared() -> None:
    made = plan(with_options(official(**PER_CHANNEL), distance_type="cosine", lmb_levels=[1, 2]))
    assert made.config.distance == "sq_l2"
    assert made.notes == ["distance_type='cosine' has no effect: scalar bins are compared by squared distance."]
    assert plan(with_options(official(**PRODUCT), num_bins=128, learn_widths=True)).config.codebook_size == 15
    assert plan(with_options(official(**VECTOR), dim=9)).config.base_channels == 4  # halved, rounded down
    assert plan(with_options(official(**VECTOR), perchannel_fair=True, lmb_levels=[])).config.code_dim is None


def test_a_constant_temperature_is_where_it_started() -> None:
    made = plan(with_options(official(**VECTOR), tau_schedule="const", tau_start=2.0, tau_end=0.1))
    assert made.config.temperature == 2.0 and float(made.tensors["quantizer.temperature"]) == 2.0
    assert made.baked["quantizer.temperature"].startswith("config.tau_start, ")
    assert plan(with_options(official(**VECTOR), tau_start=2.0, tau_end=0.1)).config.temperature == 0.1


def test_early_releases() -> None:
    per_channel = without_options(
        {**official(**PER_CHANNEL), "model_type": "lmb"}, "flatten_channels", "distance_type"
    )
    assert plan(per_channel).config.codebook_mode == "per_channel"
    transposed = without_options(official(**VECTOR), "flatten_channels")
    with pytest.raises(CheckpointError, match=r"flatten_channels is absent, which is False .*have them transposed"):
        plan(transposed)
    with pytest.raises(CheckpointError, match="no enc.emb_norm: it is of an early release"):
        plan(with_tensors(per_channel, enc__emb_norm__weight=None, enc__emb_norm__bias=None))


def test_a_square_codebook_is_what_the_arguments_say() -> None:
    for fields in ({"codebook_size": 8}, {"codebook_size": 8, "codebook_mode": "per_channel"}):
        checkpoint = official(**fields)
        flat = checkpoint["config"]["flatten_channels"]
        assert plan(checkpoint).config.codebook_mode == fields.get("codebook_mode", "vector")
        with pytest.raises(CheckpointError, match=f"flatten_channels is {not flat} in config, .*_dbg_usage like it"):
            plan(with_options(checkpoint, flatten_channels=not flat))
        bare = with_tensors(checkpoint, quantize___dbg_usage=None)
        assert (plan(with_options(bare, flatten_channels=not flat)).config.codebook_mode == "vector") is not flat


def test_legacy_decoder() -> None:
    made = plan(official(**VECTOR, legacy_decoder=True))
    assert made.config.legacy_decoder and made.tensors["decoder.from_emb.weight"].shape[0] == 32
    LGQModel(made.config).load_state_dict(made.tensors)
    with pytest.raises(CheckpointError, match="legacy_decoder: False there, True in the tensors"):
        plan(with_options(official(**VECTOR, legacy_decoder=True), legacy_decoder=False))
    for legacy in (True, False):  # both decoders are 32 wide
        checkpoint = official(codebook_size=16, base_channels=16, legacy_decoder=legacy)
        assert plan(checkpoint).config.legacy_decoder is legacy
    with pytest.raises(CheckpointError, match=r"dec.from_emb has 12 channels: expected 8 .* or 32 \(legacy decoder\)"):
        plan(with_tensors(official(**VECTOR), dec__from_emb__weight=torch.ones(12, 8, 1, 1)))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_taken_off(prefix: str) -> None:
    checkpoint = official(**VECTOR)
    state = {prefix + key: value for key, value in checkpoint["model_state_dict"].items()}
    made = plan({**checkpoint, "model_state_dict": state})
    assert made.notes == ["The keys came with a prefix of DataParallel or torch.compile, which was taken off."]
    assert made.sources["encoder.stem.bias"] == f"{prefix}enc.stem.bias"
    assert f"{prefix}quantize._inited" in made.dropped
    assert recognise({**checkpoint, "model_state_dict": state})
    state["enc.strange"] = torch.ones(1)  # not all have it: nothing is taken off
    with pytest.raises(CheckpointError, match="it lacks enc.stem.weight"):
        plan({**checkpoint, "model_state_dict": state})


def test_a_net_without_attention() -> None:
    state = {k: v for k, v in official(**VECTOR)["model_state_dict"].items() if ".block_16.2." not in k}
    made = plan({**official(**VECTOR), "model_state_dict": state})
    assert not made.config.bottleneck_attention
    LGQModel(made.config).load_state_dict(made.tensors)


def test_what_stands_beside_the_weights() -> None:
    checkpoint = official(**VECTOR)
    more = {key: {} for key in ["optimizer_state_dict", "disc_state_dict", "opt_disc_state_dict", "train_history"]}
    dropped = plan({**checkpoint, **more, "global_step": 3}).dropped
    assert (
        dropped["disc_state_dict"] == "trainer: discriminator"
        and dropped["optimizer_state_dict"] == "trainer: optimizer"
    )
    assert dropped["opt_disc_state_dict"] == "trainer: optimizer of the discriminator"
    assert {"epoch", "run_name", "train_history", "global_step"} <= dropped.keys()
    assert not {"config", "model_type", "model_state_dict"} & dropped.keys()
    with pytest.raises(CheckpointError, match="trainer does not save ema_state_dict: take out"):
        plan({**checkpoint, "ema_state_dict": {}})
    with pytest.raises(CheckpointError, match=r"got one without \['config'\]"):
        plan({"model_state_dict": {}})
    with pytest.raises(CheckpointError, match=r"got one without \['config', 'model_state_dict'\]"):
        plan(checkpoint["model_state_dict"])
    with pytest.raises(CheckpointError, match="expected the trainer's arguments by name in 'config', got list"):
        plan({**checkpoint, "config": []})
    with pytest.raises(CheckpointError, match="expected a dictionary of tensors in 'model_state_dict'"):
        plan({**checkpoint, "model_state_dict": {"enc.stem.weight": 1}})
    with pytest.raises(CheckpointError, match="model_type is 'vq': of the official trainer's models only"):
        plan({**checkpoint, "model_type": "vq"})


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"enc__strange__weight": torch.ones(1)}, "1 keys that this model .* lacks: enc.strange.weight"),
        ({"dec__up2__deconv__bias": None}, "not whole, it lacks 1 keys: dec.up2.deconv.bias"),
        ({"enc__stem__weight": None}, "not whole, it lacks enc.stem.weight"),
        ({"enc__down3__conv__weight": None}, "not whole, it lacks enc.down3.conv.weight"),
        ({"quantize__centers": None}, "not whole, it lacks quantize.centers"),
        ({"quantize__centers": torch.ones(3)}, r"expected 2 dimensions, none of them 0, for quantize.centers"),
        ({"enc__stem__weight": torch.ones(4, 1, 3, 3)}, "enc.stem takes 1 channels: expected 3"),
        ({"enc__down2__conv__weight": torch.ones(12, 8, 4, 4)}, r"stages have \[4, 8, 12, 8, 8\] channels: expected"),
        ({"dec__block_64__2__conv1__weight": torch.ones(8, 8, 3, 3)}, "dec.block_64 has more than 2 residual blocks"),
        ({"enc__block_32__2__q__weight": torch.ones(8, 8, 1, 1)}, "lacks: enc.block_32.2.q.weight"),
        ({"dec__out__bias": torch.ones(4)}, r"dec.out.bias \(4,\) where decoder.out.bias has \(3,\)"),
        ({"quantize___inited": torch.tensor(0, dtype=torch.uint8)}, "the codebook was never initialised"),
        ({"quantize__centers": torch.zeros(16, 8)}, "the codebook was never initialised"),
        ({"quantize___inited": None}, ""),
    ],
)
def test_keys_and_shapes(tensors: dict, message: str) -> None:
    checkpoint = with_tensors(official(**VECTOR), **tensors)
    if not message:
        plan(checkpoint)
        return
    with pytest.raises(CheckpointError, match=message):
        plan(checkpoint)


def test_shapes_of_widths() -> None:
    checkpoint = with_tensors(official(**VECTOR, learn_widths=True), quantize__alpha=torch.ones(7))
    with pytest.raises(CheckpointError, match=r"quantize.alpha \(7,\) where quantizer.alpha has \(16,\)"):
        plan(checkpoint)


def test_widths_that_the_official_code_does_not_build() -> None:
    state = official(**VECTOR)["model_state_dict"]
    wide = {
        key: value.repeat_interleave(5, 0) if "stem" in key or "down" in key else value for key, value in state.items()
    }
    wide["dec.from_emb.weight"] = torch.ones(40, 8, 1, 1)
    with pytest.raises(CheckpointError, match="base_channels=20 gives a stage of 40 channels, which 32 groups do not"):
        plan({**without_options(official(**VECTOR), "dim"), "model_state_dict": wide})
