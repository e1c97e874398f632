import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lgq_hf import LGQConfig, LGQImageProcessor, LGQModel, LGQTokenizer
from model_cards import embed as module
from model_cards.embed import embed, keep_records


@pytest.fixture
def final(tmp_path: Path) -> Path:
    folder = tmp_path / "final"
    config = LGQConfig(
        base_channels=8, channel_multiplier=[1, 1], num_res_blocks=1, latent_channels=8, codebook_size=4
    )
    LGQModel(config).save_pretrained(folder)
    LGQImageProcessor(pad_to_multiple_of=2).save_pretrained(folder)
    return folder


def test_embedding_drops_the_code_and_keeps_the_card(final: Path, tmp_path: Path) -> None:
    folder = tmp_path / "package" / "tiny"
    assert "auto_map" in json.loads((final / "config.json").read_text())
    folder.mkdir(parents=True)
    for name in ("README.md", "reconstruction.jpg"):
        (folder / name).write_text("card")
    embed(final, folder)
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "reconstruction.jpg",
    ]
    assert "auto_map" not in (folder / "config.json").read_text() + (folder / "preprocessor_config.json").read_text()
    assert (folder / "README.md").read_text() == "card"
    assert LGQTokenizer.from_pretrained(folder).config.codebook_size == 4
    assert LGQImageProcessor.from_pretrained(folder).pad_to_multiple_of == 2


def test_half_the_bytes_load_as_the_float32_that_they_stand_for(final: Path, tmp_path: Path) -> None:
    embed(final, tmp_path / "half", torch.float16)
    exact, stored = load_file(final / "model.safetensors"), load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    loaded = LGQTokenizer.from_pretrained(tmp_path / "half").state_dict()
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}
    for name, tensor in exact.items():
        assert torch.equal(loaded[name], tensor.half().float()), name


def test_large_weights_are_spread_over_files(final: Path, tmp_path: Path) -> None:
    embed(final, tmp_path / "spread", torch.float16, "8KB")
    files = sorted((tmp_path / "spread").glob("*.safetensors"))
    assert len(files) > 1
    assert (tmp_path / "spread" / "model.safetensors.index.json").is_file()
    exact = load_file(final / "model.safetensors")
    for name, tensor in LGQTokenizer.from_pretrained(tmp_path / "spread").state_dict().items():
        assert torch.equal(tensor, exact[name].half().float()), name


def test_weights_beyond_half_precision_are_refused_and_nothing_is_written(final: Path, tmp_path: Path) -> None:
    weights = load_file(final / "model.safetensors")
    name = min(weights)
    weights[name].view(-1)[0] = 1e5
    save_file(weights, final / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"^{name}: expected values that torch.float16 can hold"):
        embed(final, tmp_path / "half", torch.float16)
    assert not (tmp_path / "half").exists()


def test_records_are_named_after_the_checkpoint(tmp_path: Path) -> None:
    for name in ("results.json", "training.csv", "validation.csv"):
        (tmp_path / name).write_text(name)
    (tmp_path / "results").mkdir()
    keep_records(tmp_path, "lgq-tiny", tmp_path / "results")
    found = {file.name: file.read_text() for file in (tmp_path / "results").iterdir()}
    assert found == {
        "lgq_tiny_training.json": "results.json",
        "lgq_tiny_training.csv": "training.csv",
        "lgq_tiny_validation.csv": "validation.csv",
    }


def test_of_a_stage_only_the_records_are_kept(final: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[tuple[Path, str]] = []
    monkeypatch.setattr(module, "keep_records", lambda *arguments: kept.append(arguments))
    folder, words = tmp_path / "tiny", ["embed", str(final), str(tmp_path / "tiny")]
    monkeypatch.setattr("sys.argv", [*words, "--records-only"])
    module.main()
    assert kept == [(final, "tiny")] and not folder.exists()
    monkeypatch.setattr("sys.argv", [*words, "--dtype", "float16", "--max-shard-size", "8KB"])
    module.main()
    assert kept == [(final, "tiny")] * 2 and (folder / "model.safetensors.index.json").is_file()
