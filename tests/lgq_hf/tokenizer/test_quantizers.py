"""The quantizer contract (docs/adding_a_quantizer.md): a quantizer gets all of it by one line in CASES."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lgq_hf import LGQConfig, LGQModel
from lgq_hf.tokenizer.quantizer_base import (
    Quantizer,
    RowsOutput,
    entropy_perplexity,
    hard_usage,
    mean_or_zero,
    straight_through,
)
from tests.ranks import Ranks

TINY = {"base_channels": 8, "channel_multiplier": [1, 1], "num_res_blocks": 1, "bottleneck_attention": False}


class RoundingQuantizer(Quantizer):
    """Rounds two channels to five levels each: the smallest thing that keeps the contract; nothing to learn."""

    code_dim, codebook_size = 2, 25

    def assign_rows(self, x_NC: torch.Tensor) -> torch.Tensor:
        bins_NC = x_NC.clamp(-2, 2).round().long() + 2
        return bins_NC[:, 0] * 5 + bins_NC[:, 1]

    def lookup_rows(self, tokens_N: torch.Tensor) -> torch.Tensor:
        return torch.stack([tokens_N // 5, tokens_N % 5], dim=1).float() - 2

    def train_rows(self, x_NC: torch.Tensor) -> RowsOutput:
        tokens = self.assign_rows(x_NC)
        codes = self.lookup_rows(tokens).to(x_NC)
        perplexity = entropy_perplexity(hard_usage(tokens, 25))
        statistics = {"perplexity": perplexity, "codebook_usage": (hard_usage(tokens, 25) > 0).float().mean()}
        return RowsOutput(straight_through(codes, x_NC), tokens, mean_or_zero((x_NC - codes).square()), statistics)

    def init_from(self, latents: torch.Tensor, method: str = "random", generator: Any = None) -> None:
        """Nothing to place."""


@dataclasses.dataclass(frozen=True)
class Case:
    """Config fields of a model with this quantizer, and which parts of the contract its mathematics does not give.

    `maps_codes_to_themselves` is false where a longer or wider neighbour can win a code's own place, `vector` where
    there is no common codebook to permute, `lgq` where LGQ's temperature, loss terms and estimators do not exist.
    `make` builds a quantizer that no config names. `trains` is false where there is no loss yet.
    """

    fields: dict[str, Any]
    make: Callable[[], Quantizer] | None = None
    lgq: bool = True
    two_processes: bool = False
    maps_codes_to_themselves: bool = True
    shift_invariant: bool = True
    vector: bool = True
    trains: bool = True


CASES = {
    "sq_l2": Case({"codebook_size": 40}),
    "sq_l2_identity": Case(
        {"codebook_size": 40, "straight_through": "identity", "commitment_weight": 0.25}, two_processes=True
    ),
    "l2": Case({"codebook_size": 40, "distance": "l2"}),
    "cosine": Case({"codebook_size": 40, "distance": "cosine"}, shift_invariant=False),
    "dot": Case({"codebook_size": 40, "distance": "dot"}, maps_codes_to_themselves=False, shift_invariant=False),
    "widths": Case({"codebook_size": 40, "learn_widths": True}, maps_codes_to_themselves=False, two_processes=True),
    "floor": Case({"codebook_size": 40, "lambda_floor": 0.01, "min_perplexity": 30.0}, two_processes=True),
    "per_channel": Case({"codebook_size": 16, "codebook_mode": "per_channel"}, vector=False, two_processes=True),
    "per_channel_widths": Case(
        {"codebook_size": 16, "codebook_mode": "per_channel", "learn_widths": True, "straight_through": "identity"},
        maps_codes_to_themselves=False,
        vector=False,
    ),
    "product": Case(
        {"codebook_size": 60, "codebook_mode": "product", "levels": [4, 3, 5], "code_dim": 3},
        vector=False,
        two_processes=True,
    ),
    "one_code": Case({"codebook_size": 1}),
    "learned_temperature": Case({"codebook_size": 40, "learn_temperature": True}, two_processes=True),
    "revived": Case({"codebook_size": 40, "dead_code_threshold": 0.9, "codebook_decay": 0.5}),
    "vq": Case(
        {"codebook_size": 40, "quantizer": "vq", "commitment_weight": 0.25, "rotation_trick": True},
        lgq=False,
        two_processes=True,
    ),
    "vq_cosine": Case(
        {"codebook_size": 40, "quantizer": "vq", "distance": "cosine"}, lgq=False, shift_invariant=False
    ),
    "vq_ema": Case(
        {"codebook_size": 40, "quantizer": "vq", "codebook_update": "ema", "codebook_decay": 0.9},
        lgq=False,
        two_processes=True,
    ),
    "ibq": Case(
        {"codebook_size": 40, "quantizer": "ibq", "distance": "dot", "entropy_weight": 0.05},
        lgq=False,
        two_processes=True,
        maps_codes_to_themselves=False,
        shift_invariant=False,
    ),
    "simvq_product": Case({"codebook_size": 40, "quantizer": "simvq"}, lgq=False, trains=False),
    "simvq": Case(
        {"codebook_size": 40, "quantizer": "simvq", "learn_projection": True},
        lgq=False,
        two_processes=True,
        shift_invariant=False,
    ),
    "fsq": Case(
        {"codebook_size": 60, "quantizer": "fsq", "levels": [4, 3, 5], "code_dim": 3},
        lgq=False,
        two_processes=True,
        maps_codes_to_themselves=False,
        shift_invariant=False,
        vector=False,
    ),
    "ifsq": Case(
        {"codebook_size": 16, "quantizer": "fsq", "levels": [2, 8], "code_dim": 2, "fsq_bound": "sigmoid"},
        lgq=False,
        maps_codes_to_themselves=False,
        shift_invariant=False,
        vector=False,
    ),
    "lfq": Case(
        {"codebook_size": 64, "quantizer": "lfq", "entropy_weight": 0.1, "entropy_temperature": 1.0},
        lgq=False,
        two_processes=True,
        shift_invariant=False,
        vector=False,
    ),
    "lfq_groups": Case(
        {"codebook_size": 4, "quantizer": "lfq", "entropy_weight": 0.1, "entropy_bits": 1},
        lgq=False,
        shift_invariant=False,
        vector=False,
    ),
    "bsq": Case(
        {
            "codebook_size": 64,
            "quantizer": "bsq",
            "entropy_weight": 0.1,
            "entropy_bits": 3,
            "entropy_temperature": 1.0,
        },
        lgq=False,
        two_processes=True,
        shift_invariant=False,
        vector=False,
    ),
    "rounding": Case({}, make=RoundingQuantizer, lgq=False, shift_invariant=False, vector=False),
}


def build(case: Case, **changes: Any) -> Quantizer:
    """A quantizer whose codes lie among the latents of `draw`."""
    torch.manual_seed(0)
    if case.make is not None:
        return case.make()
    config = LGQConfig(**TINY, **({"latent_channels": 6} | case.fields | changes))
    quantizer = LGQModel(config).quantizer
    quantizer.init_from(draw(quantizer, batch=8, seed=1), "random", torch.Generator().manual_seed(2))
    if getattr(quantizer, "alpha", None) is not None:
        torch.nn.init.normal_(quantizer.alpha, std=0.3)
    return quantizer


def draw(quantizer: Quantizer, batch: int = 3, height: int = 4, width: int = 5, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, quantizer.code_dim, height, width, generator=generator)


def modes(case: Case) -> tuple[bool, ...]:
    """Evaluation, and training where it is defined."""
    return (False, True) if case.trains else (False,)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(params=[name for name, case in CASES.items() if case.lgq])
def lgq_case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


# 1. The result


@pytest.mark.parametrize("training", [False, True])
def test_shapes_types_and_ranges(case: Case, training: bool) -> None:
    if training not in modes(case):
        pytest.skip("has no loss")
    quantizer = build(case).train(training)
    latents = draw(quantizer)
    codes, tokens, loss, statistics = quantizer(latents)
    groups = () if quantizer.tokens_per_position == 1 else (quantizer.tokens_per_position,)
    assert codes.shape == latents.shape and codes.dtype == torch.float32 and codes.is_contiguous()
    assert tokens.shape == (3, 4, 5, *groups) and tokens.dtype == torch.int64
    assert tokens.min() >= 0 and tokens.max() < quantizer.codebook_size
    if training:
        assert loss.shape == () and torch.isfinite(loss)
        assert statistics and all(v.shape == () and not v.requires_grad for v in statistics.values())
        assert 1 - 1e-4 <= statistics["perplexity"] <= quantizer.codebook_size + 1e-3
        assert 0 < statistics["codebook_usage"] <= 1
    else:
        assert loss is None and statistics == {}


def test_empty_batch(case: Case) -> None:
    quantizer = build(case)
    for mode in modes(case):
        codes, tokens, loss, statistics = quantizer.train(mode)(draw(quantizer, batch=0))
        assert codes.shape[0] == tokens.shape[0] == 0
        assert loss is None or torch.isfinite(loss)
        assert all(torch.isfinite(value) for value in statistics.values())
    assert quantizer.codes_from_tokens(tokens).shape == codes.shape


# 2. Tokens and codes stand for each other


def test_codes_from_tokens_are_those_of_forward_bit_for_bit(case: Case) -> None:
    quantizer = build(case)
    for training in modes(case):
        codes, tokens, _, _ = quantizer.train(training)(draw(quantizer))
        assert torch.equal(quantizer.codes_from_tokens(tokens), codes)


def test_every_code_maps_to_itself(case: Case) -> None:
    if not case.maps_codes_to_themselves:
        pytest.skip("another code may win a code's own place under this distance")
    quantizer = build(case).eval()
    tokens = torch.arange(quantizer.codebook_size).reshape(1, -1, 1)
    if quantizer.tokens_per_position > 1:
        tokens = tokens[..., None].expand(1, -1, 1, quantizer.tokens_per_position)
    codes = quantizer.codes_from_tokens(tokens)
    found = quantizer(codes)
    assert torch.equal(found.codes, codes)
    if torch.unique(codes.flatten(2)[0].T, dim=0).shape[0] == quantizer.codebook_size:
        assert torch.equal(found.image_tokens, tokens)


def test_product_tokens_are_mixed_radix_with_the_last_channel_fastest() -> None:
    quantizer = build(CASES["product"])
    bins = quantizer._to_bins(torch.tensor([0, 1, 5, 15, 59]))
    assert bins.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [3, 2, 4]]
    assert quantizer._to_tokens(bins).tolist() == [0, 1, 5, 15, 59]


def test_bad_latents_are_refused(case: Case) -> None:
    quantizer = build(case)
    with pytest.raises(ValueError, match=rf"expected latents \(B, {quantizer.code_dim}, h, w\), got shape"):
        quantizer(torch.zeros(2, quantizer.code_dim + 1, 3, 3))
    with pytest.raises(ValueError, match=r"expected floating point latents, got torch\.int64"):
        quantizer(torch.zeros(2, quantizer.code_dim, 3, 3, dtype=torch.long))


# 4. Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lookup_is_fp32_under_autocast_and_after_a_cast(case: Case, dtype: torch.dtype) -> None:
    quantizer = build(case).eval()
    latents = draw(quantizer).to(dtype).float()  # values that the low precision holds exactly
    wanted = quantizer(latents)
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = quantizer(latents)
    quantizer.to(dtype)
    for name, tensor in quantizer.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, before[name])
    for found in (under_autocast, quantizer(latents.to(dtype))):
        assert torch.equal(found.image_tokens, wanted.image_tokens)
        assert torch.equal(found.codes, wanted.codes)


def test_training_and_evaluation_agree_on_tokens(case: Case) -> None:
    """They use different forms of the distance, so rows whose two best codes nearly tie may differ."""
    quantizer = build(case)
    latents = draw(quantizer, batch=20)
    in_evaluation, *in_training = (quantizer.train(mode)(latents).image_tokens for mode in modes(case))
    assert all((tokens != in_evaluation).float().mean() < 0.002 for tokens in in_training)
    exact = quantizer.double().eval()(latents.double()).image_tokens
    assert torch.equal(in_evaluation, exact)


# 5. Gradients


def test_codebook_moves_after_one_step(case: Case) -> None:
    if not case.trains:
        pytest.skip("has no loss")
    quantizer = build(case).train()
    before = {name: parameter.detach().clone() for name, parameter in quantizer.named_parameters()}
    if not before:
        pytest.skip("nothing to learn")
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1)
    latents = draw(quantizer, batch=16).requires_grad_()
    result = quantizer(latents)
    result.loss.backward()
    optimizer.step()
    quantizer.observe(latents.detach(), result.image_tokens)
    quantizer.end_step(torch.tensor(False))
    frozen = {"codebook"} if getattr(quantizer, "projection", None) is not None else set()  # SimVQ's fixed table
    for name, parameter in quantizer.named_parameters():
        if quantizer.codebook_size > 1 or name == "centers":
            assert torch.equal(parameter, before[name]) == (name in frozen), name


def gradients(quantizer: Quantizer, latents: torch.Tensor, objective: Any) -> tuple[torch.Tensor, torch.Tensor]:
    latents = latents.clone().requires_grad_()
    return torch.autograd.grad(
        objective(quantizer.train()(latents)), [latents, quantizer.centers], allow_unused=True, materialize_grads=True
    )


def test_decoder_gradient_by_estimator(lgq_case: Case) -> None:
    """identity: unchanged to the latents; soft: that of the soft average alone; the same to the centers in both."""
    latents = draw(build(lgq_case))
    cotangent = torch.randn(latents.shape, generator=torch.Generator().manual_seed(5))
    found = {
        estimator: gradients(
            build(lgq_case, straight_through=estimator, commitment_weight=1.0),
            latents,
            lambda r: (r.codes * cotangent).sum(),
        )
        for estimator in ("soft", "identity")
    }
    torch.testing.assert_close(found["identity"][0], cotangent, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found["identity"][1], found["soft"][1], rtol=1e-4, atol=1e-6)
    if lgq_case.fields["codebook_size"] > 1:
        assert found["soft"][1].abs().max() > 1e-3
        assert not torch.allclose(found["soft"][0], cotangent, rtol=1e-2)


def test_commitment_reaches_the_latents_alone() -> None:
    latents = draw(build(CASES["sq_l2_identity"]))
    with_it, without = (
        gradients(build(CASES["sq_l2_identity"], commitment_weight=weight), latents, lambda r: r.loss)
        for weight in (1.0, 0.0)
    )
    quantizer = build(CASES["sq_l2_identity"]).eval()
    pull = 2 * (latents - quantizer(latents).codes) / latents.numel()
    torch.testing.assert_close(with_it[0] - without[0], pull, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(with_it[1], without[1], rtol=0, atol=0)
    # and without commitment, peakedness and usage the latents get nothing from the identity estimator's loss
    bare = build(CASES["sq_l2_identity"], commitment_weight=0.0, lambda_peak=0.0, lambda_usage=0.0)
    assert gradients(bare, latents, lambda r: r.loss)[0].abs().max() == 0


@pytest.mark.parametrize("term", ["lambda_peak", "lambda_usage", "lambda_floor"])
def test_each_weight_scales_its_term(lgq_case: Case, term: str) -> None:
    names = {"lambda_peak": "peak_loss", "lambda_usage": "usage_loss", "lambda_floor": "floor_loss"}
    changes = {"lambda_peak": 0.0, "lambda_usage": 0.0, "lambda_floor": 0.0, "min_perplexity": 1000.0}
    latents = draw(build(lgq_case))
    without, with_it = (build(lgq_case, **(changes | {term: w})).train()(latents) for w in (0.0, 2.0))
    value = with_it.statistics[names[term]]
    torch.testing.assert_close(with_it.loss - without.loss, 2 * value, rtol=1e-4, atol=1e-5)
    assert value > 0 or (term == "lambda_peak" and lgq_case.fields["codebook_size"] == 1)


def test_straight_through_is_exact_and_routes_the_gradient() -> None:
    value, carrier = torch.tensor([0.1, 1e8]), torch.tensor([3e7, 0.3], requires_grad=True)
    result = straight_through(value, carrier)
    assert torch.equal(result, value)
    result.backward(torch.tensor([2.0, 5.0]))
    assert carrier.grad is not None and carrier.grad.tolist() == [2.0, 5.0]


# 6. Two processes


DISTRIBUTED = [name for name, case in CASES.items() if case.two_processes]


def train_on_a_half(name: str, state: dict[str, torch.Tensor], latents: torch.Tensor) -> dict[str, torch.Tensor]:
    """What one step leaves in a rank that has its half of the latents."""
    quantizer = build(CASES[name]).train()
    quantizer.load_state_dict(state)
    half = latents.chunk(2)[dist.get_rank()].clone().requires_grad_()
    result = quantizer(half)
    result.loss.backward()
    found = {"loss": result.loss.detach(), "grad_latents": half.grad}
    found |= {f"grad.{key}": tensor.grad for key, tensor in quantizer.named_parameters() if tensor.requires_grad}
    quantizer.observe(half.detach(), result.image_tokens)
    quantizer.end_step(torch.tensor(False))
    found |= {f"state.{key}": tensor.detach() for key, tensor in quantizer.state_dict().items()}
    return found | {f"statistic.{key}": value for key, value in result.statistics.items()}


@pytest.mark.parametrize("name", DISTRIBUTED)
def test_two_processes_on_half_batches_equal_one_on_the_whole(name: str, ranks: Ranks) -> None:
    quantizer = build(CASES[name]).train()
    latents = draw(quantizer, batch=4).requires_grad_()
    halves = ranks(train_on_a_half, name, quantizer.state_dict(), latents.detach())
    result = quantizer(latents)
    result.loss.backward()
    # DDP averages the ranks' gradients of shared parameters; each rank's latents count half
    torch.testing.assert_close((halves[0]["loss"] + halves[1]["loss"]) / 2, result.loss.detach(), rtol=1e-5, atol=1e-7)
    for parameter, tensor in quantizer.named_parameters():
        if not tensor.requires_grad:
            continue
        average = (halves[0][f"grad.{parameter}"] + halves[1][f"grad.{parameter}"]) / 2
        torch.testing.assert_close(average, tensor.grad, rtol=1e-4, atol=1e-7)
    quantizer.observe(latents.detach(), result.image_tokens)
    quantizer.end_step(torch.tensor(False))
    for half, (key, tensor) in itertools.product(halves, quantizer.state_dict().items()):
        torch.testing.assert_close(half[f"state.{key}"], tensor, rtol=1e-5, atol=1e-6)
    both = torch.cat([half["grad_latents"] for half in halves]) / 2
    torch.testing.assert_close(both, latents.grad, rtol=1e-4, atol=1e-8)
    wanted = {"usage_loss", "soft_perplexity", "usage_entropy", "perplexity", "codebook_usage"}
    for statistic, half in itertools.product(wanted & result.statistics.keys(), halves):
        torch.testing.assert_close(half[f"statistic.{statistic}"], result.statistics[statistic], rtol=1e-5, atol=1e-6)


def test_dead_codes_move_alike_in_two_processes(ranks: Ranks) -> None:
    """Onto other latents than in one process, but the same in both, and of both."""
    quantizer = build(CASES["revived"])
    state, latents = quantizer.state_dict(), draw(quantizer, batch=4)
    first, second = ranks(train_on_a_half, "revived", state, latents)
    for key in state:
        assert torch.equal(first[f"state.{key}"], second[f"state.{key}"]), key
    moved = (first["state.centers"] != state["centers"]).any(1)
    rows = latents.permute(0, 2, 3, 1).flatten(0, 2)
    distance, place = torch.cdist(
        first["state.centers"][moved], rows, compute_mode="donot_use_mm_for_euclid_dist"
    ).min(1)
    assert distance.max() < 1e-5
    assert (place < len(rows) // 2).any() and (place >= len(rows) // 2).any()


# 7. Symmetries and limits


def test_a_permutation_of_the_codes_permutes_the_tokens(case: Case) -> None:
    if not case.vector:
        pytest.skip("scalar bins have no common codebook")
    quantizer = build(case).eval()
    latents = draw(quantizer)
    before = quantizer(latents)
    order = torch.randperm(quantizer.codebook_size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for parameter in quantizer.parameters():
            if parameter.ndim and len(parameter) == len(order):
                parameter.copy_(parameter[order])
    after = quantizer(latents)
    assert torch.equal(order[after.image_tokens], before.image_tokens)
    assert torch.equal(after.codes, before.codes)


def test_a_shift_of_latents_and_codes_changes_nothing(case: Case) -> None:
    if not case.shift_invariant:
        pytest.skip("angles and products depend on the origin")
    quantizer = build(case).double().train(case.trains)
    latents = draw(quantizer).double()
    before = quantizer(latents)
    with torch.no_grad():
        (quantizer.centers if case.lgq else quantizer.codebook).add_(3.0)
    after = quantizer(latents + 3.0)
    assert torch.equal(after.image_tokens, before.image_tokens)
    if case.trains:
        torch.testing.assert_close(after.loss, before.loss, rtol=1e-9, atol=1e-10)


def test_small_temperature_is_hard_vector_quantization(lgq_case: Case) -> None:
    quantizer = build(lgq_case).double().train()
    quantizer.set_temperature(1e-6)
    assert quantizer.state_dict()["temperature"] == 1e-6
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        quantizer.set_temperature(0)
    latents = draw(quantizer).double()
    result = quantizer(latents)
    assert result.statistics["peak_loss"] < 1e-6
    quantizer.eval()
    hard = quantizer(latents)
    assert torch.equal(result.codes, hard.codes.double())
    wanted = (hard.codes - latents).square().mean() * (1 + quantizer.commitment_weight * quantizer.identity)
    torch.testing.assert_close(result.statistics["quantization_loss"], wanted)
