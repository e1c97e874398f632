"""What a converted model must pass: checks that see a broken model, and pass a whole one."""

import copy
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from conversion import verify
from conversion.convert import make_plan
from conversion.plan import CheckpointError
from conversion.read import own_tensors
from conversion.verify import TIE, TOLERANCE, check_model, compare_recorded, fixed_input
from lgq_hf import LGQModel

Build = Callable[..., LGQModel]


@pytest.fixture(scope="module")
def whole(family: Path) -> LGQModel:
    """The recorded VQModel of diffusers as ours."""
    plan, _ = make_plan(family / "diffusers_a/checkpoint")
    model = LGQModel(plan.config).eval()
    model.load_state_dict(own_tensors(plan.tensors))
    return model


@pytest.fixture
def model(whole: LGQModel) -> LGQModel:
    return copy.deepcopy(whole)


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_SIZES", ((32, 32), (32, 48)))


# Inputs


def test_the_input_is_the_same_each_time_and_within_range(build_model: Build) -> None:
    model = build_model("vqgan_vq", channel_multiplier=[1, 1, 1, 1], in_channels=2)  # factor 8
    pixels = fixed_input(model, 33, 48)
    assert pixels.shape == (1, 2, 40, 48) and torch.equal(pixels, fixed_input(model, 40, 48))
    assert pixels.min() >= -1 and pixels.max() <= 1 and pixels.std() > 0.2
    assert len(pixels.unique()) > pixels.numel() // 2


# By itself, and beside diffusers


def test_inputs_are_as_large_as_pictures_are(large_inputs: tuple[tuple[int, int], ...]) -> None:
    (height, width), (other_height, other_width) = large_inputs
    assert height == width == other_height == 256 and other_width > 256


@pytest.mark.usefixtures("large_inputs")
def test_a_whole_model_passes(model: LGQModel) -> None:
    report = check_model(model)
    assert report["inputs"] == [[1, 3, 256, 256], [1, 3, 256, 384]]
    assert all(1 < used <= 128 for used in report["codes_used"])
    beside = report["beside_diffusers"]
    assert beside["diffusers"] and 0 < beside["latents"] < TOLERANCE and 0 < beside["pixels"] < TOLERANCE


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("part", ["encoder.stem", "encoder.mid.blocks.0.conv1", "decoder.out", "post_quant"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(part: str, value: float, model: LGQModel) -> None:
    with torch.no_grad():
        model.get_submodule(part).bias[0] = value
    with pytest.raises(CheckpointError, match="gives values that are not finite: its weights are broken"):
        check_model(model)


@pytest.mark.usefixtures("_small")
def test_decoding_that_differs_from_the_model_is_refused(model: LGQModel, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = model.decode

    def shifted(tokens: Tensor) -> Any:
        output = decode(tokens)
        output.decoded_pixel_values[0, 0, 0, 0] += 1e-2
        return output

    monkeypatch.setattr(model, "decode", shifted)
    with pytest.raises(CheckpointError, match=r"decode\(encode\(x\)\.image_tokens\) differs from model\(x\)"):
        check_model(model)


def eps_of_one_norm(model: LGQModel) -> None:
    model.encoder.stages[0].blocks[0].norm1.eps = 1e-5


def padding_of_a_downsampler(model: LGQModel) -> None:
    downsampler = model.encoder.downsamplers[1]
    downsampler.kind, downsampler.conv.padding = "conv", (1, 1)


def no_attention_in_the_decoder(model: LGQModel) -> None:
    del model.decoder.mid.attentions["0"]


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize(
    ("change", "where"),
    [
        (eps_of_one_norm, "latents"),
        (padding_of_a_downsampler, "latents"),
        (no_attention_in_the_decoder, "pixels"),
    ],
)
def test_another_net_is_caught_beside_diffusers(
    change: Callable[[LGQModel], None], where: str, model: LGQModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = verify.diffusers_net(model)
    monkeypatch.setattr(verify, "diffusers_net", lambda _: net)
    change(model)
    with pytest.raises(CheckpointError, match="differs from the same weights in diffusers' VQModel") as caught:
        check_model(model)
    assert float(re.search(rf"'{where}': \[([\d.e-]+)", str(caught.value))[1]) > TOLERANCE


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("name", ["encoder.conv_in.bias", "decoder.conv_out.bias"])
def test_values_of_diffusers_that_are_not_finite_are_a_difference(
    name: str, model: LGQModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, tensors = verify.diffusers_net(model)
    tensors[name] = torch.full_like(tensors[name], float("nan"))
    monkeypatch.setattr(verify, "diffusers_net", lambda _: (settings, tensors))
    with pytest.raises(CheckpointError, match="differs from the same weights in diffusers' VQModel"):
        check_model(model)


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("name", ["maskgit", "simvq", "magvit2", "wetok", "vqgan_vq", "sq_l2"])
def test_nets_that_diffusers_does_not_have_say_so(name: str, build_model: Build) -> None:
    report = check_model(build_model(name))
    assert re.match(r"diffusers' VQModel has no such net \(\w+=", report["beside_diffusers"])


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("name", ["vqgan_vq_cosine", "vqgan_lgq"])
def test_any_lookup_is_compared_by_its_net(name: str, build_model: Build) -> None:
    assert check_model(build_model(name))["beside_diffusers"]["pixels"] < TOLERANCE


@pytest.mark.usefixtures("_small")
def test_without_diffusers(model: LGQModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert check_model(model)["beside_diffusers"] == "diffusers is not installed"


# Beside recorded tensors


@pytest.fixture
def rerecord(family: Path, tmp_path: Path) -> Callable[..., Path]:
    """`rerecord(change)`: the recorded tensors, changed."""

    def make(change: Callable[[dict[str, Tensor]], object]) -> Path:
        recorded = load_file(family / "diffusers_a/expected.safetensors")
        change(recorded)
        save_file(recorded, tmp_path / "expected.safetensors")
        return tmp_path / "expected.safetensors"

    return make


Rerecord = Callable[[Callable[[dict[str, Tensor]], object]], Path]


def add(name: str, value: float) -> Callable[[dict[str, Tensor]], object]:
    return lambda recorded: recorded[name].view(-1)[5].add_(value)


def test_the_recorded_tensors_are_accepted(whole: LGQModel, family: Path) -> None:
    report = compare_recorded(whole, family / "diffusers_a/expected.safetensors")
    assert report.keys() == {"square", "rect"}
    for part in report.values():
        assert 0 < part["latents"] < TOLERANCE and 0 < part["pixels"] < TOLERANCE and part["tokens_wrong"] == 0
    assert sum(part["tokens"] for part in report.values()) == 224


@pytest.mark.parametrize("name", ["latent", "reconstruction_rect"])
def test_only_rounding_is_accepted(name: str, whole: LGQModel, rerecord: Rerecord) -> None:
    compare_recorded(whole, rerecord(add(name, 5e-5)))
    with pytest.raises(CheckpointError, match=r"differs from what its source recorded \(images(_rect)?\): .*allowed "):
        compare_recorded(whole, rerecord(add(name, 2e-4)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["latent", "reconstruction", "reconstruction_rect"])
def test_recorded_values_that_are_not_finite_are_a_difference(
    name: str, value: float, whole: LGQModel, rerecord: Rerecord
) -> None:
    with pytest.raises(CheckpointError, match="differs from what its source recorded"):
        compare_recorded(whole, rerecord(add(name, value)))


def test_a_recorded_token_that_differs_is_refused(whole: LGQModel, rerecord: Rerecord) -> None:
    def change(recorded: dict[str, Tensor]) -> None:
        indices = recorded["indices_rect"].view(-1)
        indices[7] = (indices[7] + 1) % 128

    with pytest.raises(CheckpointError, match=r"\(images_rect\): .*'tokens_wrong': 1"):
        compare_recorded(whole, rerecord(change))


@pytest.mark.parametrize(("gap", "accepted"), [(0.5 * TIE, True), (1.5 * TIE, False), (None, False)])
def test_ties_are_left_out(
    gap: float | None, accepted: bool, model: LGQModel, rerecord: Rerecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(recorded: dict[str, Tensor]) -> None:
        if gap is None:
            del recorded["top2_gap"]
        else:
            recorded["top2_gap"].view(-1)[7] = gap

    encode = model.encode

    def flipped(pixels: Tensor) -> Any:
        output = encode(pixels)
        if pixels.shape[2] == pixels.shape[3]:
            tokens = output.image_tokens.view(-1)
            tokens[7] = (tokens[7] + 1) % 128
        return output

    monkeypatch.setattr(model, "encode", flipped)
    path = rerecord(change)
    if accepted:
        report = compare_recorded(model, path)
        assert report["square"]["tokens"] == 127 and report["square"]["tokens_wrong"] == 0
    else:
        with pytest.raises(CheckpointError, match="'tokens_wrong': 1"):
            compare_recorded(model, path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: [r.pop(name) for name in list(r) if name.startswith("images")], "has no images: expected tensors"),
        (
            lambda r: (r.pop("latent_rect"), r.pop("indices_rect")),
            "has images_rect and lacks latent_rect, indices_rec",
        ),
        (
            lambda r: r.update(indices=r["indices"][:1].clone()),
            r"recorded indices is \(1, 8, 8\), the model's \(2, 8, 8",
        ),
        (lambda r: r.update(latent=r["latent"][:1].clone()), "latent"),
        (lambda r: r.update(reconstruction=r["reconstruction"][..., :4].clone()), "reconstruction"),
        (lambda r: r.update(images=r["images"][..., :31].clone()), "images"),
        (lambda r: r["indices"].fill_(128), "indices|tokens"),
    ],
    ids=["no_images", "missing", "tokens", "latents", "pixels", "images", "range"],
)
def test_other_recordings_are_refused(
    change: Callable[[dict[str, Tensor]], object], said: str, whole: LGQModel, rerecord: Rerecord
) -> None:
    with pytest.raises(CheckpointError, match=said):
        compare_recorded(whole, rerecord(change))


def test_a_recording_that_cannot_be_read_is_refused(whole: LGQModel, tmp_path: Path) -> None:
    path = tmp_path / "expected.safetensors"
    with pytest.raises(CheckpointError, match=r"expected\.safetensors"):
        compare_recorded(whole, path)
    path.write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match=r"expected\.safetensors"):
        compare_recorded(whole, path)
