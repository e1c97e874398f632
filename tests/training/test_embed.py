import json
from pathlib import Path

from lgq_hf import LGQConfig, LGQImageProcessor, LGQModel, LGQTokenizer
from training.embed import embed


def test_embedding_drops_the_code_and_keeps_the_card(tmp_path: Path) -> None:
    final, folder = tmp_path / "final", tmp_path / "package" / "tiny"
    config = LGQConfig(
        base_channels=8, channel_multiplier=[1, 1], num_res_blocks=1, latent_channels=8, codebook_size=4
    )
    LGQModel(config).save_pretrained(final)
    LGQImageProcessor(pad_to_multiple_of=2).save_pretrained(final)
    assert "auto_map" in json.loads((final / "config.json").read_text())
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("card")
    embed(final, folder)
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert "auto_map" not in (folder / "config.json").read_text() + (folder / "preprocessor_config.json").read_text()
    assert (folder / "README.md").read_text() == "card"
    assert LGQTokenizer.from_pretrained(folder).config.codebook_size == 4
    assert LGQImageProcessor.from_pretrained(folder).pad_to_multiple_of == 2
