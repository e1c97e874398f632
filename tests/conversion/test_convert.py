"""Recorded miniatures of every family: converted, they give what their own project's code gave."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoImageProcessor

from conversion.convert import convert, main, make_plan
from conversion.formats import FORMATS
from conversion.parity import SOURCES
from conversion.plan import CheckpointError
from lgq_hf import LGQImageProcessor, LGQTokenizer

FILES = [f"{folder}/{name}" for folder, names in SOURCES.items() for name in names]
TIE = 1e-3

Converted = Callable[..., Path]
Recorded = Callable[[str], dict[str, Tensor]]


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest) -> str:
    return request.param


def test_every_format_but_two_is_recorded() -> None:
    """Those two are recorded elsewhere: test_lgq_official.py, test_llamagen.py."""
    assert {name.split("_a/")[0] for name in FILES} == set(FORMATS) - {"lgq_official", "janus"}


@pytest.mark.parametrize("suffix", ["", "_rect"])
@torch.no_grad()
def test_parity(file: str, suffix: str, converted: Converted, recorded: Recorded) -> None:
    expected = recorded(file.split("/")[0])
    names = ("images", "latent", "indices", "quantized", "reconstruction", "top2_gap")
    images, latent, indices, quantized, reconstruction, gap = (expected[f"{name}{suffix}"] for name in names)
    model = LGQTokenizer.from_pretrained(converted(file))
    encoded = model.encode(images)
    torch.testing.assert_close(encoded.last_hidden_state, latent, rtol=0, atol=1e-4)
    assert (gap > TIE).all()  # no token is left out for being near a tie
    assert torch.equal(encoded.image_tokens, indices)
    torch.testing.assert_close(encoded.quantized_last_hidden_state, quantized, rtol=0, atol=1e-5)
    decoded = model.decode(indices).decoded_pixel_values
    torch.testing.assert_close(decoded, reconstruction, rtol=0, atol=1e-4)
    assert torch.equal(model(images).decoded_pixel_values, decoded)


@torch.no_grad()
def test_every_code_is_the_recorded_one(file: str, converted: Converted, recorded: Recorded) -> None:
    table = recorded(file.split("/")[0]).get("effective_codebook")
    if table is None:
        pytest.skip("signs have no table")
    model = LGQTokenizer.from_pretrained(converted(file))
    tokens = torch.arange(model.config.codebook_size).reshape(1, 1, -1)
    codes = model.quantizer.codes_from_tokens(tokens)[0, :, 0].T
    torch.testing.assert_close(codes, table, rtol=0, atol=2e-6)


@pytest.mark.parametrize("suffix", ["", "_rect"])
def test_the_processor_gives_the_pixels_that_the_model_was_trained_on(
    file: str, suffix: str, converted: Converted, recorded: Recorded
) -> None:
    expected = recorded(file.split("/")[0])
    processor = LGQImageProcessor.from_pretrained(converted(file))
    pictures = [picture.numpy() for picture in expected[f"images_uint8{suffix}"]]
    pixels = processor(pictures, return_tensors="pt", input_data_format="channels_last").pixel_values
    torch.testing.assert_close(pixels, expected[f"images{suffix}"], rtol=0, atol=2e-7)
    back = processor.postprocess(pixels, output_type="np")
    assert all((abs(one * 255 - two) < 1e-3).all() for one, two in zip(back, pictures, strict=True))
    assert (
        processor.pad_to_multiple_of == LGQTokenizer.from_pretrained(converted(file)).config.spatial_downsample_factor
    )


@torch.no_grad()
def test_bfloat16_keeps_the_lookup_in_fp32(file: str, converted: Converted, recorded: Recorded) -> None:
    images = recorded(file.split("/")[0])["images_rect"]
    model = LGQTokenizer.from_pretrained(converted(file))
    half = LGQTokenizer.from_pretrained(converted(file), dtype=torch.bfloat16)
    assert half.encoder.stem.weight.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in half.quantizer.state_dict().values()} <= {torch.float32}
    latents = model.encode(images).last_hidden_state
    assert torch.equal(half.quantizer(latents).image_tokens, model.quantizer(latents).image_tokens)
    encoded = half.encode(images)
    decoded = half.decode(encoded.image_tokens).decoded_pixel_values
    assert decoded.dtype == torch.bfloat16
    assert torch.equal(half(images).decoded_pixel_values, decoded)
    # the recorded nets magnify their first layer's rounding a hundredfold, so that most tokens may differ; not all do
    assert (encoded.image_tokens == model.encode(images).image_tokens).float().mean() > 0.1


@torch.no_grad()
def test_raw_weights_by_choice(family: Path, converted: Converted, recorded: Recorded) -> None:
    for source in (f for f in FILES if "raw_weights.indices_rect" in recorded(f.split("/")[0]) and "release" not in f):
        expected = recorded(source.split("/")[0])
        assert make_plan(family / source, weights="ema")[0].weights == make_plan(family / source)[0].weights == "ema"
        for choice, prefix in (("raw", "raw_weights."), ("ema", "")):
            folder = converted(source, weights="raw") if choice == "raw" else converted(source)
            model = LGQTokenizer.from_pretrained(folder)
            encoded = model.encode(expected["images_rect"])
            torch.testing.assert_close(
                encoded.last_hidden_state, expected[f"{prefix}latent_rect"], rtol=0, atol=1e-4, msg=source
            )
            assert torch.equal(encoded.image_tokens, expected[f"{prefix}indices_rect"]), source
            assert model.config.converted_from["weights"] == choice
            assert json.loads((folder / "conversion.json").read_text())["source"]["weights"] == choice


def test_remote_code_without_the_package(tmp_path: Path, converted: Converted, recorded: Recorded) -> None:
    """All families in one process that cannot import lgq_hf."""
    folders = {file: converted(file) for file in FILES}
    script = tmp_path / "load.py"
    script.write_text(
        "import json, sys\n"
        "import torch\n"
        "from transformers import AutoModel\n"
        "from safetensors.torch import load_file\n"
        "try:\n    import lgq_hf\n"
        "except ImportError:\n    pass\nelse:\n    sys.exit('lgq_hf is importable')\n"
        "for folder, expected in json.load(open(sys.argv[1])):\n"
        "    model = AutoModel.from_pretrained(folder, trust_remote_code=True)\n"
        "    recorded = load_file(expected)\n"
        "    with torch.no_grad():\n"
        "        tokens = model.encode(recorded['images_rect']).image_tokens\n"
        "        pixels = model.decode(tokens).decoded_pixel_values\n"
        "    assert torch.equal(tokens, recorded['indices_rect']), folder\n"
        "    assert (pixels - recorded['reconstruction_rect']).abs().max() < 1e-4, folder\n"
        "print('all', len(json.load(open(sys.argv[1]))))\n"
    )
    pairs = []
    for number, (file, folder) in enumerate(folders.items()):
        # transformers caches remote code by the folder's name
        copy = shutil.copytree(folder, tmp_path / f"family_{number}")
        pairs.append(
            [
                str(copy),
                str(Path(__file__).parents[1] / f"fixtures/vqgan_family/{file.split('/')[0]}/expected.safetensors"),
            ]
        )
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    blocked = tmp_path / "blocked" / "lgq_hf"
    blocked.mkdir(parents=True)
    (blocked / "__init__.py").write_text("raise ImportError('not installed here')\n")
    environment = {
        **os.environ,
        "PYTHONPATH": str(blocked.parent),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, str(script), str(tmp_path / "pairs.json")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == f"all {len(FILES)}"


# What is written


def test_what_is_written(file: str, converted: Converted, family: Path) -> None:
    folder = converted(file)
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "conversion.json"} < names
    report = json.loads((folder / "conversion.json").read_text())
    plan, _ = make_plan(family / file)
    assert report["format"] == plan.format == file.split("_a/")[0]
    model = LGQTokenizer.from_pretrained(folder)
    # strict both ways
    assert set(report["mapping"].values()) == set(model.state_dict())
    assert report["dropped"] == plan.dropped and all(plan.dropped.values())
    assert model.config.converted_from["sha256"] == ", ".join(report["source"]["sha256"].values())
    card = (folder / "README.md").read_text()
    for digest in report["source"]["sha256"].values():
        assert digest in card and len(digest) == 64
    assert FORMATS[plan.format].url in card and FORMATS[plan.format].code_licence in card
    assert isinstance(AutoImageProcessor.from_pretrained(folder), LGQImageProcessor)


def test_the_card_states_the_licence_that_was_given(converted: Converted) -> None:
    stated = (converted("simvq_a/checkpoint.ckpt", license="mit") / "README.md").read_text()
    assert "\nlicense: mit\n" in stated and "mit, as stated at conversion" in stated
    unknown = (converted("simvq_a/checkpoint.ckpt") / "README.md").read_text()
    assert "\nlicense: other\n" in unknown and "The licence of the weights was not stated" in unknown


@pytest.mark.usefixtures("large_inputs")
def test_source_files_stay_as_they_were(family: Path, tmp_path: Path) -> None:
    """Tensors are views of the mapped file until they are copied. With inputs as they are outside of tests."""
    before = (family / "wetok_a/checkpoint.ckpt").read_bytes()
    report = convert(family / "wetok_a/checkpoint.ckpt", tmp_path / "out")
    assert report["verification"]["inputs"] == [[1, 3, 256, 256], [1, 3, 256, 384]]
    assert (family / "wetok_a/checkpoint.ckpt").read_bytes() == before


# The command


def test_the_command(family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "vqgan"
    source = str(family / "wetok_a/checkpoint.ckpt")
    assert main([source, "--output", str(output), "--expected", str(family / "wetok_a/expected.safetensors")]) == 0
    assert "wetok, ema weights, 101 tensors" in capsys.readouterr().out
    assert (
        json.loads((output / "conversion.json").read_text())["verification"]["recorded"]["rect"]["tokens_wrong"] == 0
    )
    assert "of 224 tokens different" in (output / "README.md").read_text()
    assert main([source, "--output", str(output)]) == 1
    assert "is not empty: take another folder, or --overwrite" in capsys.readouterr().err
    assert main([source, "--output", str(output), "--overwrite", "--weights", "raw"]) == 0
    assert json.loads((output / "config.json").read_text())["converted_from"]["weights"] == "raw"


def test_a_dry_run_prints_the_mapping_and_writes_nothing(
    family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.iterdir())
    assert main([str(family / "simvq_a/checkpoint.ckpt"), "--dry-run", "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "model_ema.encoderconv_inweight -> encoder.stem.weight (32, 3, 3, 3)" in printed
    assert "quantizer.codebook (256, 32)  (embedding_proj(embedding), in float64)" in printed
    assert "encoder.conv_in.weight -> dropped: optimised weights: their moving average is used" in printed
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "--output is needed"), (["--output", "x", "--config", "y", "--no-config"], "exclude each other")],
)
def test_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["somewhere", *arguments])
    assert message in capsys.readouterr().err


# What is refused, and that nothing is left


def _rewrite(
    family: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], name: str = "maskgit_a"
) -> Path:
    state = {
        key: tensor.clone() for key, tensor in torch.load(family / name / "checkpoint.bin", weights_only=True).items()
    }
    change(state)
    source = tmp_path / "source" / "checkpoint.bin"
    source.parent.mkdir()
    torch.save(state, source)
    return source


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["decoder.conv_out.bias"].fill_(float("nan")), r"NaN|not finite"),
        (lambda s: s["encoder.conv_in.weight"].view(-1)[3].fill_(float("inf")), r"infinite|not finite"),
        (lambda s: s.update({"encoder.mid.0.conv1.weight": torch.zeros(64, 63, 3, 3)}), r"1 of another shape: enc"),
        (lambda s: s.update({"quantize.embedding.weight": torch.zeros(256, 31)}), r"\(256, 31\) where quantizer"),
        (lambda s: s.pop("encoder.norm_out.bias"), r"nothing for 1 of the model's tensors: encoder.norm_out.bias"),
        (lambda s: s.update({"encoder.extra.weight": torch.zeros(3)}), r"1 keys that this format does not have: enc"),
        (lambda s: s.update({"decoder.conv_out.bias": torch.zeros(3, dtype=torch.int32)}), r"decoder\.conv_out\.bias"),
        (lambda s: s.update({"decoder.conv_out.weight": torch.zeros(1).expand(3, 32, 3, 3)[:, :, :, :2]}), r"shape"),
    ],
)
def test_broken_checkpoints_write_nothing(
    change: Callable[[dict[str, Any]], object],
    message: str,
    family: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = _rewrite(family, tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        convert(source, tmp_path / "out")
    assert main([str(source), "--output", str(tmp_path / "out")]) == 1
    assert "not converted, nothing was written: " in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_recording_that_differs_writes_nothing(family: Path, tmp_path: Path) -> None:
    source = _rewrite(family, tmp_path, lambda s: s["encoder.conv_in.weight"].mul_(1.01))
    with pytest.raises(CheckpointError, match="differs from what its source recorded"):
        convert(source, tmp_path / "out", expected=family / "maskgit_a/expected.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_half_precision_checkpoint_becomes_fp32(family: Path, tmp_path: Path) -> None:
    source = _rewrite(family, tmp_path, lambda s: s.update({key: tensor.half() for key, tensor in s.items()}))
    convert(source, tmp_path / "out")
    held = load_file(tmp_path / "out/model.safetensors")
    assert {tensor.dtype for tensor in held.values()} == {torch.float32}
    original = torch.load(source, weights_only=True)["quantize.embedding.weight"]
    assert torch.equal(held["quantizer.codebook"], original.float())


# Places and files that people have


def test_a_release_as_it_is_published(family: Path, tmp_path: Path) -> None:
    """Runs of taming and SEED-Voken, and a diffusers pipeline with a half precision variant, by their root folders."""
    for name in ("checkpoints", "configs"):
        (tmp_path / "run" / name).mkdir(parents=True)
    shutil.copy(family / "simvq_a/checkpoint.ckpt", tmp_path / "run/checkpoints/last.ckpt")
    shutil.copy(family / "simvq_a/config.yaml", tmp_path / "run/configs/2024-01-01T00-00-00-project.yaml")
    assert make_plan(tmp_path / "run")[0].config.image_size == 128
    shutil.copytree(family / "amused_a/checkpoint", tmp_path / "pipeline/vqvae")
    (tmp_path / "pipeline/model_index.json").write_text("{}")
    weights = tmp_path / "pipeline/vqvae/diffusion_pytorch_model.safetensors"
    shutil.copy(weights, weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    plan, files = make_plan(tmp_path / "pipeline")
    assert plan.format == "amused" and files == [weights]


def test_unrelated_files_beside_a_format_without_configuration(family: Path, tmp_path: Path) -> None:
    source = shutil.copy(family / "llamagen_a/checkpoint_release.pt", tmp_path / "vq_ds16_c2i.pt")
    for name in ("a.yaml", "b.yaml", "config.json"):
        (tmp_path / name).write_text("[1, {")
    assert make_plan(Path(source))[0].format == "llamagen"
    with pytest.raises(CheckpointError, match="the format of this checkpoint has no configuration"):
        make_plan(Path(source), config=tmp_path / "a.yaml")


def test_overwriting_never_deletes_what_it_did_not_write(family: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    convert(family / "wetok_a/checkpoint.ckpt", output)
    source = shutil.copy(family / "simvq_a/checkpoint.ckpt", output / "mine.ckpt")
    with pytest.raises(CheckpointError, match="would replace what is read from it"):
        convert(Path(source), output, format="simvq", use_config=False, overwrite=True)
    with pytest.raises(CheckpointError, match=r"would delete mine\.ckpt"):
        convert(family / "simvq_a/checkpoint.ckpt", output, overwrite=True)
    assert Path(source).exists()
    Path(source).unlink()
    before = (output / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="differs from what its source recorded"):
        convert(
            family / "simvq_a/checkpoint.ckpt",
            output,
            weights="raw",
            expected=family / "simvq_a/expected.safetensors",
            overwrite=True,
        )
    assert (output / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("place", [".", "file/out", "/proc/nothing/out", "x" * 300])
def test_places_that_cannot_be_written_end_in_one_line(
    place: str, family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    assert main([str(family / "wetok_a/checkpoint.ckpt"), "--output", place]) == 1
    assert "not converted, nothing was written: " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("license", ["mit\ntags: [x]", "", "a b", "MIT"])
def test_a_licence_is_an_identifier(license: str, family: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected an identifier of the Hub as licence, in small letters"):
        convert(family / "wetok_a/checkpoint.ckpt", tmp_path / "out", license=license)


def test_a_table_of_equal_codes_is_refused(family: Path, tmp_path: Path) -> None:
    source = _rewrite(family, tmp_path, lambda s: s["quantize.embedding.weight"].zero_())
    with pytest.raises(CheckpointError, match="all codes of the table are equal: the codebook was never trained"):
        convert(source, tmp_path / "out")


def test_keys_of_absurd_length_are_refused(family: Path, tmp_path: Path) -> None:
    source = _rewrite(family, tmp_path, lambda s: s.update({f"encoder.down.{'9' * 5000}.block.0.x": torch.ones(1)}))
    with pytest.raises(CheckpointError, match="1 keys are longer than 200 characters"):
        convert(source, tmp_path / "out")
