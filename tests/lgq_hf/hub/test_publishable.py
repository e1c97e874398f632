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
from lgq_hf.hub.publishable import check_publishable
from lgq_hf.hub.publishable_card import HERE, STATE_BOTH, STATE_PICTURES, card_for
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
    (folder / "images").mkdir()
    besides = {"LICENSE", "LICENSE-MIT", "notice.txt", "samples.png", "images/grid.PNG", "images/Grid.webp"}
    for name in besides:
        (folder / name).write_text("MIT")
    others = {
        "pytorch_model.bin": "a pickle, which can run code when it is loaded",
        "model.CKPT": "a pickle, which can run code when it is loaded",
        ".env": "hidden, or a cache",
        ".cache/huggingface/x.json": "hidden, or a cache",
        "__pycache__/modeling_lgq.pyc": "hidden, or a cache",
        "checkpoint-00000010/model.safetensors": "state of training",
        "optimizer.safetensors": "state of training",
        "upload.py": "code that no config.json names",
        "notes.txt": "of no kind that a checkpoint has",
        "before/config.json": "in a folder that is no part of the checkpoint",
    }
    for name in others:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    (folder / "link.json").symlink_to(folder / "gone.json")
    (folder / "pictures").symlink_to("images")
    (folder / "same.png").symlink_to("samples.png")
    publication = check_publishable(folder)
    assert publication.notes == []
    assert publication.files.keys() == names | besides | {"same.png"}
    assert publication.files["model.safetensors"] == (folder / "model.safetensors").stat().st_size
    assert publication.left_out == {
        **others,
        "link.json": "a link to nothing",
        "pictures": "a link to a folder",
    }


@pytest.mark.parametrize("kind", ["masked", "autoregressive"])
def test_a_pipeline_goes_with_its_components(kind: str, tmp_path: Path) -> None:
    folder = pipeline_folder(tmp_path / kind, kind)
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    (folder / "other").mkdir()
    (folder / "other" / "config.json").write_text("{}")
    publication = check_publishable(folder)
    assert publication.files.keys() == written
    assert publication.left_out == {"other/config.json": "in a folder that is no part of the checkpoint"}


def test_links_that_lead_out_of_the_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}")
    (folder / "extra.json").symlink_to(tmp_path / "secret.json")
    told = r"extra.json' is a link to '.*secret.json': expected files that lie in the folder, .*`cp -rL .* NEW` makes"
    with pytest.raises(ValueError, match=told):
        check_publishable(folder)
    (folder / "extra.json").rename(folder / "extra.bin")  # of a kind that stays, wherever it leads
    assert "extra.bin" in check_publishable(folder).left_out


def test_a_component_that_is_a_link_is_refused(tmp_path: Path) -> None:
    folder = pipeline_folder(tmp_path / "masked", "masked")
    (folder / "vqvae").rename(folder / "tokenizer")
    (folder / "vqvae").symlink_to("tokenizer")  # it would load here, and not go
    with pytest.raises(ValueError, match="vqvae' is a link to '.*tokenizer': expected files that lie in the folder"):
        check_publishable(folder)


@pytest.mark.parametrize("placeholder", [STATE_PICTURES, STATE_BOTH])
def test_a_card_that_does_not_say_the_licence_of_the_pictures(folder: Path, placeholder: str) -> None:
    wrapped = placeholder.replace("they were", "they\nwere")
    (folder / "README.md").write_text(f"{CARD}\n## Licence\n\nThese weights: mit. {wrapped}\n")
    told = f"README.md still says '{placeholder}': write there instead what their licence is, or that it is not known"
    with pytest.raises(ValueError, match=f"the card in .*tiny' is not finished: {told}"):
        check_publishable(folder)
    (note,) = check_publishable(folder, as_generated=True).notes
    assert note.startswith(told)


def test_a_card_that_loads_its_own_folder_goes_with_the_name_of_the_repository(folder: Path) -> None:
    text = f"{CARD}\r\nmodel = LGQTokenizer.{HERE}\nprocessor = LGQImageProcessor.{HERE}\n"
    (folder / "README.md").write_bytes(text.encode())
    (note,) = check_publishable(folder).notes
    assert note == f"README.md goes with the repository's name where it says {HERE}; the file here stays as it is"
    assert card_for(folder, "org/lgq").decode() == text.replace('"."', '"org/lgq"')


@pytest.mark.parametrize("license_", ["openrail++", "cc-by-nc-sa-4.0", "[mit, apache-2.0]"])
def test_licences(folder: Path, license_: str) -> None:
    (folder / "README.md").write_text(f"---\nlicense: {license_}\n---\n# tiny\n")
    assert check_publishable(folder).files


def test_a_pipeline_that_draws_nothing_is_refused(tmp_path: Path) -> None:
    folder = pipeline_folder(tmp_path / "masked", "masked")
    (folder / "results.json").write_text(json.dumps({"metrics": {"frechet_distance": 1.0}}))
    weights = folder / "transformer" / "model.safetensors"
    damaged = {name: tensor * float("nan") for name, tensor in load_file(weights).items()}
    save_file(damaged, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="draws no picture: the transformer's logits, .* were not all finite"):
        check_publishable(folder)


def test_the_checkpoint_in_the_package_is_told_to_lack_its_code() -> None:
    publication = check_publishable(default_checkpoint())
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"} <= publication.files.keys()
    (note,) = publication.notes
    assert "no code travels along" in note


def test_code_of_another_repository_does_not_go(folder: Path) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        values = json.loads((folder / name).read_text())
        values["auto_map"] = {auto: f"org/other--{place}" for auto, place in values["auto_map"].items()}
        (folder / name).write_text(json.dumps(values))
    publication = check_publishable(folder)
    assert publication.left_out["modeling_lgq.py"] == "code that no config.json names" and publication.notes
    assert not any(path.endswith(".py") for path in publication.files)


def test_results_of_the_card_alone_and_of_an_evaluation(folder: Path) -> None:
    (folder / "results.json").unlink()
    (folder / "README.md").write_text(MODEL_INDEX)
    assert check_publishable(folder).files
    (folder / "README.md").write_text(CARD)
    (folder / "results.json").write_text(json.dumps({"metrics": {"psnr": 20.0}, "model": {"fingerprint": "0" * 64}}))
    with pytest.raises(ValueError, match=r"results.json' is of other weights: it names 000000000000, which is"):
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
    "no folder": (shutil.rmtree, "no folder .*expected that of a tokenizer or pipeline"),
    "no checkpoint": (_unlink("config.json"), "no checkpoint in .*: expected config.json .* or model_index.json"),
    "other config": (_write("config.json", '{"model_type": "vit"}'), "it is of type 'vit', expected 'lgq'"),
    "no processor": (_unlink("preprocessor_config.json"), "cannot load the model .*preprocessor_config.json"),
    "no weights": (_unlink("model.safetensors"), "results.json' is of other weights"),
    "no code": (
        _unlink("quantizer_lgq.py"),
        r"code is missing beside config.json: it names modeling_lgq.py.*save_pre",
    ),
    "cut": (
        lambda folder: (folder / "discriminator.safetensors").write_bytes(b"cut"),
        "discriminator.safetensors' is no whole safetensors file",
    ),
    "other weights": (lambda folder: _weights(folder, torch.neg), "Measure these anew, or put back those"),
    "not finite": (_not_finite, "decodes to values that are not finite: it is damaged"),
    "no card": (_unlink("README.md"), "no card in .*: expected README.md, with metadata between lines of ---"),
    "no metadata": (_write("README.md", "# tiny\n"), "has no metadata: begin it with a line ---"),
    "bad metadata": (_write("README.md", "---\na: [\n---\n"), "the metadata of .* cannot be read: while parsing"),
    "list": (_write("README.md", "---\n- a\n---\n"), "cannot be read: .*should be a dict"),
    "no license": (_write("README.md", "---\ntags: [a]\n---\n"), "names no license: expected an identifier.*got None"),
    "empty license": (_write("README.md", "---\nlicense: ''\ntags: [a]\n---\n"), "names no license.*got ''"),
    "own license": (
        _write("README.md", "---\nlicense: all mine!!\n---\n"),
        "names no license: expected an identifier of the Hub's, such as mit.*got 'all mine!!'",
    ),
    "some license": (
        _write("README.md", "---\nlicense: other\n---\n"),
        "says 'license: other' and not which: expected",
    ),
    "no results": (_unlink("results.json"), "no results in .*lgq evaluate .* PICTURES --output"),
    "empty results": (
        _write("results.json", '{"steps": 3}'),
        r"holds no results: expected numbers in validation .* none in \['steps'\]. Measure it: lgq evaluate",
    ),
    "null results": (_write("results.json", '{"metrics": {"x": null}}'), r"no results: .* none in \['metrics'\]"),
    "NaN results": (_write("results.json", '{"metrics": {"x": [NaN, true]}}'), "holds no results"),
    "steps alone": (_write("results.json", '{"validation": [{"step": 10, "psnr": null}]}'), "holds no results"),
    "results of another kind": (_write("results.json", "[]"), "expected an object, got list"),
    "damaged results": (_write("results.json", "{"), "results.json' is damaged"),
}


@pytest.mark.parametrize("case", list(BROKEN))
def test_what_is_refused(folder: Path, case: str) -> None:
    spoil, message = BROKEN[case]
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        check_publishable(folder)


def test_the_folder_of_a_run_is_told_where_its_result_is(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run" / "final")
    with pytest.raises(ValueError, match="found final; this is the folder of a run: give '.*run/final'"):
        check_publishable(tmp_path / "run")
