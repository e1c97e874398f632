import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lgq_hf import LGQModel, default_checkpoint
from lgq_hf.checkpoint.loading import CODEBOOK, find_checkpoint, fingerprint, load_checkpoint, weights_fingerprint


def test_the_fingerprint_is_that_of_the_weights(
    tmp_path: Path, model_folder: Path, other_model_folder: Path, make_model: Callable[..., Path]
) -> None:
    found = load_checkpoint(str(model_folder)).fingerprint
    assert load_checkpoint(str(make_model(tmp_path / "again"))).fingerprint == found
    assert load_checkpoint(str(other_model_folder)).fingerprint != found
    model = LGQModel.from_pretrained(model_folder)
    assert fingerprint(sorted(model.state_dict().items())) == found
    with torch.no_grad():
        model.quantizer.centers[3, 1] += 1e-6
    model.save_pretrained(tmp_path / "changed")
    assert weights_fingerprint(tmp_path / "changed") != found
    assert weights_fingerprint(tmp_path / "changed", CODEBOOK) != weights_fingerprint(model_folder, CODEBOOK)
    assert weights_fingerprint(tmp_path / "changed", "decoder.") == weights_fingerprint(model_folder, "decoder.")


def test_how_tensors_are_kept_makes_no_difference(tmp_path: Path, model_folder: Path) -> None:
    model = LGQModel.from_pretrained(model_folder)
    model.save_pretrained(tmp_path / "several", max_shard_size="20KB")
    assert len(list((tmp_path / "several").glob("*.safetensors"))) > 2
    assert weights_fingerprint(tmp_path / "several") == weights_fingerprint(model_folder)
    half = LGQModel.from_pretrained(model_folder).half()
    half.save_pretrained(tmp_path / "half")
    whole = LGQModel.from_pretrained(tmp_path / "half", dtype=torch.float32)
    assert weights_fingerprint(tmp_path / "half") == fingerprint(sorted(whole.state_dict().items()))


def test_what_a_folder_holds(tmp_path: Path, model_folder: Path) -> None:
    place = tmp_path / "copy"
    shutil.copytree(model_folder, place)
    one, two = find_checkpoint(str(model_folder)), find_checkpoint(str(place))
    assert one.name == str(model_folder.resolve()) and one.revision is None
    assert (one.weights, one.codebook, one.config, one.processor) == (
        two.weights,
        two.codebook,
        two.config,
        two.processor,
    )
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "transformers_version": "0"}))
    assert find_checkpoint(str(place)) == two  # saved anew by another version
    (place / "config.json").write_text(json.dumps({**config, "image_size": 96}))
    assert find_checkpoint(str(place)).config != two.config
    with pytest.raises(ValueError, match="was changed after this job began"):
        two.load("cpu")
    with pytest.raises(ValueError, match="revision='v1' is for a Hub repository, and .* is a folder: leave it out"):
        find_checkpoint(str(place), "v1")
    (place / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"cannot load the model .*: no model\*\.safetensors in"):
        find_checkpoint(str(place))


def test_the_built_in_one_goes_by_its_name_unless_a_folder_does(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = default_checkpoint().name
    monkeypatch.chdir(tmp_path)
    assert load_checkpoint(name, "cpu").folder == default_checkpoint()
    assert find_checkpoint(name).weights == find_checkpoint(None).weights
    shutil.copytree(model_folder, tmp_path / name)
    assert find_checkpoint(name).weights == find_checkpoint(str(model_folder)).weights
