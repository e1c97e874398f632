"""The folder that a conversion writes: where it may go, what the card says, and that it is whole or not there."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from conversion import write
from conversion.convert import make_plan
from conversion.formats import FORMATS
from conversion.plan import CheckpointError, Plan
from conversion.read import read_weights
from conversion.write import REPORT, card, check_output, write_folder
from lgq_hf import LGQImageProcessor, LGQModel
from lgq_hf.hub.publishable import HERE

Build = Callable[..., LGQModel]
FIXTURES = Path(__file__).parents[1] / "fixtures"
SUFFIXES = {"amused": "", "diffusers": "", "llamagen": ".pt", "maskgit": ".bin"}
DIGEST = "0123456789abcdef" * 4
BESIDE = {"diffusers": "0.42.1", "latents": 4e-6, "pixels": 3e-5}
RECORDED = {
    "square": {"latents": 2e-6, "pixels": 1e-6, "tokens_wrong": 0, "tokens": 128},
    "rect": {"latents": 1e-6, "pixels": 7e-6, "tokens_wrong": 0, "tokens": 96},
}


def report_of(license: str | None = None, **verification: Any) -> dict[str, Any]:
    return {
        "source": {"file": "model.bin", "sha256": {"model.bin": DIGEST, "more.bin": DIGEST[::-1]}, "license": license},
        "verification": {"inputs": [[1, 3, 256, 256], [1, 3, 256, 384]], "beside_diffusers": BESIDE, **verification},
    }


@cache
def planned(name: str) -> tuple[LGQModel, Plan]:
    """A plan of each format, and its model without memory."""
    if name == "lgq_official":
        folder = FIXTURES / "lgq_official/lgq_flat_l2_k64_c16"
        config = json.loads((folder / "official_config.json").read_text())
        content = {"model_state_dict": load_file(folder / "official_model.safetensors"), "config": config}
        plan = FORMATS[name].plan(content, None, "auto")
    elif name == "janus":
        weights = read_weights([FIXTURES / "vqgan_family/llamagen_a/checkpoint.pt"])["model"]
        plan = FORMATS[name].plan({f"gen_vision_model.{key}": tensor for key, tensor in weights.items()}, None, "auto")
    else:
        plan, _ = make_plan(FIXTURES / f"vqgan_family/{name}_a/checkpoint{SUFFIXES.get(name, '.ckpt')}")
    with torch.device("meta"):
        return LGQModel(plan.config), plan


# Where it may go


@pytest.mark.parametrize("overwrite", [True, False])
def test_free_places(overwrite: bool, tmp_path: Path) -> None:
    check_output(tmp_path / "new" / "deeper", overwrite=overwrite)
    (tmp_path / "empty").mkdir()
    check_output(tmp_path / "empty", overwrite=overwrite)


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_file_is_refused(overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="expected a folder to write, and .*file is a file"):
        check_output(tmp_path / "file", overwrite=overwrite)


def test_an_earlier_conversion_is_replaced_on_request_only(tmp_path: Path) -> None:
    (tmp_path / REPORT).write_text("{}")
    (tmp_path / "model.safetensors").write_text("")
    check_output(tmp_path, overwrite=True)
    with pytest.raises(CheckpointError, match="is not empty: take another folder, or --overwrite an earlier"):
        check_output(tmp_path, overwrite=False)


@pytest.mark.parametrize("report", [None, "folder"])
def test_other_folders_are_never_replaced(report: str | None, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    if report:
        (tmp_path / REPORT).mkdir()
    said = rf"is not empty: --overwrite replaces conversions \(with {REPORT}\) only"
    with pytest.raises(CheckpointError, match=said):
        check_output(tmp_path, overwrite=True)


# The card


@pytest.mark.parametrize("license", ["mit", None])
@pytest.mark.parametrize("format", FORMATS)
def test_the_card_of_every_format(format: str, license: str | None) -> None:
    model, plan = planned(format)
    kind = FORMATS[format]
    text = card("my-tokenizer", model, plan, report_of(license))
    _, head, body = text.split("---\n", 2)
    values = yaml.safe_load(head)
    assert values["license"] == (license or "other") and format in values["tags"]
    assert values["library_name"] == "transformers"
    assert f"| model.bin | `{DIGEST}` |\n| more.bin | `{DIGEST[::-1]}` |" in body
    stated = "mit, as stated at conversion; " if license else ""
    assert f"\nLicence: {stated}the code of {kind.project} is {kind.code_licence}." in body
    assert ("The licence of the weights was not stated at conversion: ask their publisher" in body) is (not license)
    averaged = format in ("ibq", "magvit2", "simvq", "wetok", "llamagen")
    assert ("\n- Weights: the moving averages (EMA).\n" in body) is averaged
    assert ("\n- Weights: those that were optimised.\n" in body) is not averaged
    assert body.count(HERE) == 2
    assert f"[{kind.project}]({kind.url})" in body and "# my-tokenizer\n" in body
    config = model.config
    factor, size = config.spatial_downsample_factor, config.codebook_size
    assert f"Downsampling factor {factor}, K = {size}, code dimension {config.quantizer_dim}, " in body
    assert f"{len(plan.dropped)} keys of the source were not used" in body
    assert all(f"- {note}\n" in body for note in plan.notes)
    assert "$" not in text


@pytest.mark.parametrize(
    ("format", "said"),
    [
        ("taming", "Lookup: the nearest code. Pixels in [-1, 1]."),
        ("llamagen", "Lookup: the code at the smallest angle; codes are decoded at length 1. Pixels in [-1, 1]."),
        ("ibq", "Lookup: the code with the largest scalar product. Pixels in [-1, 1]."),
        ("simvq", "Lookup: the nearest of the projected codes."),
        ("wetok", "Lookup: the signs of the channels."),
        ("wetok", "# (1, h, w, 4), each in [0, 16)"),
        ("magvit2", "# (1, h, w), each in [0, 1024)"),
        ("maskgit", "Lookup: the nearest code. Pixels in [0, 1]."),
        ("amused", "Pixels in [0, 1]."),
        ("simvq", "; quantizer.codebook was computed as embedding_proj(embedding), in float64."),
    ],
)
def test_what_a_format_is(format: str, said: str) -> None:
    assert said in card("name", *planned(format), report_of())


def test_the_pixels_of_other_processors() -> None:
    model, plan = planned("taming")
    other = Plan(
        **{**vars(plan), "processor": {"do_normalize": True, "image_mean": [0.4] * 3, "image_std": [0.2] * 3}}
    )
    assert "Pixels in [0, 1], minus [0.4, 0.4, 0.4], over [0.2, 0.2, 0.2]." in card("name", model, other, report_of())


def test_what_was_verified() -> None:
    said = card("name", *planned("taming"), report_of(recorded=RECORDED))
    assert "On inputs of (1, 3, 256, 256) and (1, 3, 256, 384): all values finite" in said
    assert "in diffusers 0.42.1: largest difference of latents 4.0e-06, of pixels 3.0e-05" in said
    assert "latents within 2.0e-06, pixels within 7.0e-06, 0 of 224 tokens different." in said
    assert "none were given" not in said
    without = card("name", *planned("taming"), report_of(beside_diffusers="reason"))
    assert "independent implementation of the net: not compared, reason." in without
    assert "Not compared with tensors recorded from the source's own code: none were given" in without


# Whole or not at all


@pytest.fixture
def small(build_model: Build) -> tuple[LGQModel, Plan]:
    model = build_model("vqgan_vq")
    processor = {"do_normalize": False, "pad_to_multiple_of": model.config.spatial_downsample_factor}
    tensors = model.state_dict()
    return model, Plan("taming", model.config, processor, tensors, {name: f"their.{name}" for name in tensors})


def test_what_is_written_loads(small: tuple[LGQModel, Plan], tmp_path: Path) -> None:
    model, plan = small
    write_folder(tmp_path / "out", model, plan, report_of())
    again = LGQModel.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())
    processor = LGQImageProcessor.from_pretrained(tmp_path / "out")
    assert processor.do_normalize is False and processor.pad_to_multiple_of == 4
    assert json.loads((tmp_path / "out" / REPORT).read_text()) == report_of()
    assert (tmp_path / "out/README.md").read_text() == card("out", model, plan, report_of())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("part", ["quantizer.codebook", "decoder.out.bias", "encoder.stem.weight"])
@pytest.mark.parametrize("earlier", [True, False])
def test_nothing_is_written_where_the_folder_gives_something_else(
    part: str, earlier: bool, small: tuple[LGQModel, Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    if earlier:
        output.mkdir()
        (output / REPORT).write_text("an earlier conversion")
    load = LGQModel.from_pretrained

    def altered(folder: Path) -> LGQModel:
        model = load(folder)
        with torch.no_grad():
            tensor = model.get_parameter(part)
            tensor.copy_(tensor.flip(0) + 0.01)
        return model

    monkeypatch.setattr(write.LGQModel, "from_pretrained", altered)
    with pytest.raises(CheckpointError, match="loaded again, gives other tokens or pixels than the converted one"):
        write_folder(output, *small, report_of())
    assert [path.name for path in tmp_path.rglob("*")] == (["out", REPORT] if earlier else [])
    assert not earlier or (output / REPORT).read_text() == "an earlier conversion"


def test_an_earlier_conversion_is_replaced_as_a_whole(small: tuple[LGQModel, Plan], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/model-00001-of-00002.safetensors").write_text("old")
    write_folder(tmp_path / "out", *small, report_of())
    assert not (tmp_path / "out/model-00001-of-00002.safetensors").exists()
    shutil.rmtree(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_only_what_a_conversion_writes_is_replaced(tmp_path: Path) -> None:
    for name in (REPORT, "model.safetensors", "config.json", "modeling_lgq.py"):
        (tmp_path / name).write_text("")
    check_output(tmp_path, overwrite=True)
    (tmp_path / "vq.pt").write_text("")
    with pytest.raises(CheckpointError, match=r"holds more than a conversion, and --overwrite would delete vq\.pt"):
        check_output(tmp_path, overwrite=True)


def test_what_is_read_does_not_lie_where_it_would_be_replaced(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"would replace what is read from it: .*model\.safetensors"):
        check_output(tmp_path, overwrite=True, read=[tmp_path / "source" / "model.safetensors"])


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot be written: .*file is no folder that may be written to"):
        check_output(tmp_path / "file" / "out", overwrite=False)
