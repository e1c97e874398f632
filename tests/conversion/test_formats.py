"""Which format a file is, by its tensors' names and by the configuration that came along."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from conversion.configs import find_configs
from conversion.convert import make_plan
from conversion.formats import FORMATS, check_choice, format_of, possible, recognise, target_of, weight_names
from conversion.plan import CheckpointError
from conversion.read import read_weights, weight_files

FILES = {
    "amused_a/checkpoint": "amused",
    "diffusers_a/checkpoint": "diffusers",
    "diffusers_a/checkpoint_legacy": "diffusers",
    "ibq_a/checkpoint.ckpt": "ibq",
    "llamagen_a/checkpoint.pt": "llamagen",
    "llamagen_a/checkpoint_release.pt": "llamagen",
    "magvit2_a/checkpoint.ckpt": "magvit2",
    "maskgit_a/checkpoint.bin": "maskgit",
    "simvq_a/checkpoint.ckpt": "simvq",
    "taming_a/checkpoint.ckpt": "taming",
    "wetok_a/checkpoint.ckpt": "wetok",
}
CLASSES = {
    "taming.models.vqgan.VQModel": "taming",
    "taming.models.vq.VQModel": "simvq",
    "src.IBQ.models.ibqgan.IBQ": "ibq",
    "src.Open_MAGVIT2.models.lfqgan.VQModel": "magvit2",
    "src.WeTok.models.lfqgan.VQModel": "wetok",
}


def names(*keys: str) -> dict[str, Any]:
    """A state dict of these names."""
    return {key: torch.zeros(1) for key in keys}


TAMING = names("encoder.down.0.block.0.conv1.weight", "decoder.up.0.block.0.conv1.weight")
MAGVIT2 = names("encoder.mid_block.0.norm1.weight", "decoder.mid_block.0.norm1.weight")
DIFFUSERS = names("encoder.down_blocks.0.resnets.0.norm1.weight", "decoder.conv_in.weight")


def yaml(target: str | None, key: str = "target") -> dict[str, Any]:
    return {"yaml": {"model": {key: target, "params": {}}}}


def test_all_formats_but_two_are_among_the_files() -> None:
    assert set(FILES.values()) == set(FORMATS) - {"lgq_official", "janus"}


@pytest.mark.parametrize("file", FILES)
def test_recorded_files_are_recognised(file: str, family: Path) -> None:
    files = weight_files(family / file)
    content = read_weights(files)
    kind = FORMATS[possible(content)[0]].config
    assert recognise(content, find_configs(files[0], None, kind) if kind else {}) == FILES[file]


@pytest.mark.parametrize("file", [file for file in FILES if "amused" not in file and "diffusers" not in file])
def test_recorded_files_without_their_configuration(file: str, family: Path) -> None:
    content, wanted = read_weights(weight_files(family / file)), FILES[file]
    for pair in (("taming", "ibq"), ("magvit2", "wetok")):
        if wanted in pair:
            said = (
                rf"^{pair[0]} and {pair[1]} keep the same tensors .*--config FILE.*\(--format {pair[0]}\|{pair[1]}\)"
            )
            with pytest.raises(CheckpointError, match=said):
                recognise(content, {})
            return
    assert recognise(content, {}) == wanted


def test_amused_is_told_from_diffusers_by_its_configuration() -> None:
    assert recognise(DIFFUSERS, {}) == "diffusers"
    assert recognise(DIFFUSERS, {"json": {"lookup_from_codebook": False}}) == "diffusers"
    assert recognise(DIFFUSERS, {"json": {"lookup_from_codebook": True}}) == "amused"


@pytest.mark.parametrize("key", ["target", "class_path"])
@pytest.mark.parametrize("target", CLASSES)
def test_classes_of_yamls(target: str, key: str) -> None:
    assert format_of(target_of(yaml(target, key)["yaml"])) == CLASSES[target]
    assert format_of(f"somewhere.{target}") == CLASSES[target]
    assert format_of(f"not_{target}".replace("not_src.", "not_")) is None  # a part of a name is another name
    assert format_of(f"{target}2") is None


@pytest.mark.parametrize("config", [{}, {"model": None}, {"model": []}, {"model": {"params": {}}}])
def test_yamls_without_a_class(config: dict[str, Any]) -> None:
    assert target_of(config) is None and format_of(None) is None
    with pytest.raises(CheckpointError, match=r"names the class None, .*say so: --format taming\|ibq"):
        recognise(TAMING, {"yaml": config})


def test_an_unknown_class_is_refused_with_the_known_ones() -> None:
    with pytest.raises(CheckpointError) as caught:
        recognise(TAMING, yaml("some.models.VQModel"))
    assert "names the class 'some.models.VQModel'" in str(caught.value)
    assert "taming.models.vqgan.VQModel" in str(caught.value) and "--format taming|ibq" in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "target", "said"),
    [
        (TAMING, "src.WeTok.models.lfqgan.VQModel", "of a wetok model (src.WeTok.models.lfqgan.VQModel), and the "),
        (TAMING, "taming.models.vq.VQModel", "the tensors are those of taming or ibq"),
        (MAGVIT2, "src.IBQ.models.ibqgan.IBQ", "the tensors are those of magvit2 or wetok"),
        ({**MAGVIT2, **names("quantize.embedding_proj.weight")}, "src.WeTok.models.lfqgan.VQModel", "those of simvq"),
    ],
)
def test_a_yaml_of_another_class_is_refused(tensors: dict[str, Any], target: str, said: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(said)):
        recognise(tensors, yaml(target))


def test_the_yaml_of_another_model_in_the_folder_of_a_format_without_one(family: Path) -> None:
    content = read_weights([family / "llamagen_a/checkpoint.pt"])
    assert recognise(content, yaml("taming.models.vqgan.VQModel")) == "llamagen"


@pytest.mark.parametrize(
    ("name", "configs", "said"),
    [
        ("ibq", yaml("taming.models.vqgan.VQModel"), "--format ibq, .* names taming.models.vqgan.VQModel, of taming"),
        ("wetok", yaml("src.Open_MAGVIT2.models.lfqgan.VQModel"), "--format wetok, .* of magvit2"),
        ("diffusers", {"json": {"lookup_from_codebook": True}}, "lookup_from_codebook=true: it is an aMUSEd VQ-GAN"),
    ],
)
def test_a_choice_that_the_configuration_contradicts(name: str, configs: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        check_choice(name, configs)


def test_choices_that_nothing_contradicts() -> None:
    for name in FORMATS:
        check_choice(name, {})
        check_choice(name, yaml("somebody.elses.VQModel"))
    check_choice("ibq", yaml("src.IBQ.models.ibqgan.IBQ"))
    check_choice("llamagen", yaml("src.IBQ.models.ibqgan.IBQ"))
    check_choice("amused", {"json": {"lookup_from_codebook": True}})


def test_a_choice_in_place_of_an_unknown_class(family: Path, tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text((family / "ibq_a/config.yaml").read_text().replace("src.IBQ.models.ibqgan.IBQ", "mine.Net"))
    source = family / "ibq_a/checkpoint.ckpt"
    with pytest.raises(CheckpointError, match=r"'mine\.Net', which is none of the known .*--format taming\|ibq"):
        make_plan(source, config=config)
    assert make_plan(source, config=config, format="ibq")[0].format == "ibq"
    with pytest.raises(CheckpointError, match="--format taming, and the YAML configuration names src.IBQ"):
        make_plan(source, format="taming")


@pytest.mark.parametrize("tensors", [TAMING, MAGVIT2, DIFFUSERS])
def test_an_encoder_alone_is_refused(tensors: dict[str, Any]) -> None:
    encoder = {name: tensor for name, tensor in tensors.items() if name.startswith("encoder.")}
    with pytest.raises(CheckpointError, match="an encoder and no decoder: tokens could not become pictures"):
        recognise({"state_dict": encoder}, {})


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        (names("layer1.0.conv1.weight", "fc.bias"), "the file has layer1.0.conv1.weight, fc.bias"),
        (names("encoder.layers.0.weight", "decoder.layers.0.weight"), "the file has encoder.layers.0.weight"),
        ({"state_dict": {}, "epoch": 3}, "no tensors by name, but the entries [state_dict, epoch]"),
        ({"epoch": 3}, "no tensors by name, but the entries [epoch]"),
        ({}, "no tensors"),
        ({"state_dict": {3: torch.zeros(1)}}, "no tensors by name"),
    ],
)
def test_unrelated_files_are_refused(content: dict[Any, Any], seen: str) -> None:
    with pytest.raises(CheckpointError, match=f"expected a checkpoint of {', '.join(FORMATS)}; .*{re.escape(seen)}"):
        recognise(content, {})


@pytest.mark.parametrize("entry", ["state_dict", "model", "ema", None])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_names_wherever_they_are(entry: str | None, prefix: str) -> None:
    weights = {prefix + name: tensor for name, tensor in MAGVIT2.items()}
    content = weights if entry is None else {entry: weights, "epoch": 3}
    assert weight_names(content) == list(MAGVIT2)
    assert recognise(content, yaml("src.WeTok.models.lfqgan.VQModel")) == "wetok"


def test_what_a_format_says_of_itself() -> None:
    assert {kind.config for kind in FORMATS.values()} == {None, "yaml", "json"}
    for name, kind in FORMATS.items():
        assert kind.url.startswith("https://github.com/") and kind.code_licence in ("MIT", "Apache-2.0"), name


@pytest.mark.parametrize("target", ["ldm.models.autoencoder.VQModel", "ldm.models.autoencoder.VQModelInterface"])
def test_latent_diffusions_class_is_tamings(target: str) -> None:
    assert recognise(TAMING, yaml(target)) == "taming"


def test_gumbel_says_why_whatever_its_yaml_says() -> None:
    content = {**TAMING, **names("quantize.embed.weight", "quantize.proj.weight")}
    with pytest.raises(CheckpointError, match="taming's GumbelVQ, whose tokens come from a learned projection"):
        recognise(content, yaml("taming.models.vqgan.GumbelVQ"))
