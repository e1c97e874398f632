"""What is refused before anything is sent, and what of a folder goes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lgq_hf import default_checkpoint
from lgq_hf.checkpoint.loading import weights_fingerprint
from lgq_hf.hub import check_publishable
from lgq_hf.hub.publishable import HERE, STATE_BOTH, STATE_PICTURES
from tests.lgq_hf.publishing import CARD, MODEL_INDEX, pipeline_folder, tokenizer_folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer_folder(tmp_path_factory.mktemp("publishable") / "tiny")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "tiny")


def test_a_tokenizer_goes_with_its_code_and_nothing_else(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert {"modeling_lgq.py", "quantizer_lgq.py", "image_processing_lgq.py"} <= names
    besides = {"LICENSE", "notice.txt", "samples.png", "images/grid.PNG"}
    others = {
        "pytorch_model.bin",
        "LICENSE.PT",
        ".env",
        ".cache/huggingface/x.json",
        "__pycache__/modeling_lgq.pyc",
        "checkpoint-00000010/model.safetensors",
        "optimizer.safetensors",
        "upload.py",
        "notes.txt",
        "before/config.json",
    }
    for name in besides | others:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    (folder / "link.json").symlink_to(folder / "gone.json")
    (folder / "same.png").symlink_to("samples.png")
    publication = check_publishable(folder)
    assert publication.notes == [] and set(publication.left_out) == others | {"link.json"}
    assert publication.files.keys() == names | besides | {"same.png"}
    assert publication.files["model.safetensors"] == (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize("kind", ["masked", "autoregressive"])
def test_a_pipeline_goes_with_its_components(kind: str, tmp_path: Path) -> None:
    folder = pipeline_folder(tmp_path / kind, kind)
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    (folder / "other").mkdir()
    (folder / "other" / "config.json").write_text("{}")
    publication = check_publishable(folder)
    assert publication.files.keys() == written and publication.left_out == ["other/config.json"]
    (folder / "vqvae").rename(folder / "tokenizer")
    (folder / "vqvae").symlink_to("tokenizer")  # it would load here, and not go
    with pytest.raises(ValueError, match="vqvae' is a link to"):
        check_publishable(folder)


def test_links_that_lead_out_of_the_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}")
    (folder / "extra.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(ValueError, match="extra.json' is a link to '.*secret.json'"):
        check_publishable(folder)


@pytest.mark.parametrize("placeholder", [STATE_PICTURES, STATE_BOTH])
def test_a_card_that_does_not_say_the_licence_of_the_images(folder: Path, placeholder: str) -> None:
    wrapped = placeholder.replace("they were", "they\nwere")
    (folder / "README.md").write_text(f"{CARD}\n## Licence\n\nThese weights: mit. {wrapped}\n")
    with pytest.raises(ValueError, match="README.md does not state the licence"):
        check_publishable(folder)
    (note,) = check_publishable(folder, as_generated=True).notes
    assert "licence" in note


def test_notes(folder: Path) -> None:
    (folder / "README.md").write_text(f"{CARD}\nmodel = LGQTokenizer.{HERE}\n")
    for name in ("config.json", "preprocessor_config.json"):
        values = json.loads((folder / name).read_text())
        values["auto_map"] = {auto: f"org/other--{place}" for auto, place in values["auto_map"].items()}
        (folder / name).write_text(json.dumps(values))
    publication = check_publishable(folder)
    assert not any(path.endswith(".py") for path in publication.files)
    assert ["no code" in publication.notes[0], HERE in publication.notes[1]] == [True, True]
    assert {"README.md", "config.json", "model.safetensors"} <= check_publishable(default_checkpoint()).files.keys()


def test_a_pipeline_that_draws_nothing_is_refused(tmp_path: Path) -> None:
    folder = pipeline_folder(tmp_path / "masked", "masked")
    (folder / "results.json").write_text(json.dumps({"metrics": {"frechet_distance": 1.0}}))
    weights = folder / "transformer" / "model.safetensors"
    damaged = {name: tensor * float("nan") for name, tensor in load_file(weights).items()}
    save_file(damaged, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="draws no image"):
        check_publishable(folder)


def test_results_of_the_card_alone_and_by_the_fingerprint(folder: Path) -> None:
    (folder / "results.json").unlink()
    (folder / "README.md").write_text(MODEL_INDEX)
    assert check_publishable(folder).files
    results = {"metrics": {"psnr": 20.0}, "model": {"fingerprint": weights_fingerprint(folder)}}
    (folder / "results.json").write_text(json.dumps(results))
    assert check_publishable(folder).files
    (folder / "results.json").write_text(json.dumps({**results, "model": {"fingerprint": "0" * 64}}))
    with pytest.raises(ValueError, match="results.json' is of other weights: it names 000000000000"):
        check_publishable(folder)


def _write(name: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(text)


def _unlink(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


def _weights(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: change(one) for name, one in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


def _not_finite(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in reversed(tensors) if name.startswith("decoder") and name.endswith("bias"))
    tensors[name][:] = float("inf")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "results.json").write_text(json.dumps({"metrics": {"psnr": 20.0}}))


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no checkpoint": (_unlink("config.json"), "no checkpoint in .*config.json"),
    "other config": (_write("config.json", '{"model_type": "vit"}'), "'vit'"),
    "no weights": (_unlink("model.safetensors"), "results.json' is of other weights"),
    "no code": (_unlink("quantizer_lgq.py"), "quantizer_lgq.py"),
    "other weights": (lambda folder: _weights(folder, torch.neg), "results.json' is of other weights"),
    "not finite": (_not_finite, "not finite"),
    "no card": (_unlink("README.md"), "no card in .*README.md"),
    "no metadata": (_write("README.md", "# tiny\n"), "names no license.*got None"),
    "bad metadata": (_write("README.md", "---\na: [\n---\n"), "the metadata of .* cannot be read"),
    "some license": (_write("README.md", "---\nlicense: other\n---\n"), "names no license.*got 'other'"),
    "no results": (_unlink("results.json"), "no results in .*lgq evaluate"),
    "empty results": (_write("results.json", '{"steps": 3}'), "no results in"),
}


@pytest.mark.parametrize("case", list(BROKEN))
def test_what_is_refused(folder: Path, case: str) -> None:
    spoil, message = BROKEN[case]
    spoil(folder)
    with pytest.raises((ValueError, OSError), match=message):
        check_publishable(folder)
