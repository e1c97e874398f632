"""What the cards are rendered from, measured on a small model and few pictures."""

from pathlib import Path

import pytest
import torch

from benchmarks import checkpoint, photographs
from lgq_hf import LGQConfig, LGQImageProcessor, LGQModel
from lgq_hf.checkpoint.loading import load_checkpoint
from lgq_hf.evaluation import Settings, evaluate_tokenizer
from lgq_hf.images.sources import open_source
from lgq_hf.images.views import Preprocessing
from lgq_hf.metrics.efficientnet import EfficientNetLite0
from model_cards import card


@pytest.fixture
def model(tmp_path: Path) -> Path:
    config = LGQConfig(
        base_channels=4, channel_multiplier=[1, 1, 1], num_res_blocks=1, latent_channels=16, codebook_size=16
    )
    LGQModel(config).save_pretrained(tmp_path / "model")
    LGQImageProcessor(pad_to_multiple_of=4).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.slow
def test_all_that_a_card_says_is_measured(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SETS", dict.fromkeys(checkpoint.SETS, photographs.NAMED[:2]))
    monkeypatch.setattr(checkpoint, "_rate", lambda call: call() and 2.0)
    for folder in (tmp_path / "images" / "test" / "some", tmp_path / checkpoint.STAMPS):
        folder.mkdir(parents=True)
        for name in photographs.NAMED[1:3]:
            photographs.load(name, 288).save(folder / f"{name}.png")
    result = checkpoint.measure(str(model), tmp_path)
    assert card.quality_table(result).count("| 2 |") == len(card.SETS)
    assert card.codebook_table(result).count("| 512.0 |") == len(card.SETS)  # 2 x 64 x 64 tokens for 16 codes
    assert "on the 2 pictures of the test packages (no FID)" in card.frechet_line({"": result})
    assert (result["parameters"], result["downsampling_factor"], result["quantizer"]) == (
        LGQModel.from_pretrained(model).num_parameters(),
        4,
        "lgq",
    )
    assert result["latent_axes"] is None  # no projection in front of the codes
    assert card.axes_line(result) == ""
    # as `lgq evaluate` has it
    source = open_source(str(tmp_path / "images" / "test"), kind="folder")
    settings = Settings(preprocessing=Preprocessing(size=256), batch_size=4)
    metrics = evaluate_tokenizer(load_checkpoint(str(model), "cpu"), source, settings, EfficientNetLite0())["metrics"]
    for name in ("psnr", "ssim", "frechet_distance", "codes_used"):
        assert result["corpus_test"][name] == pytest.approx(metrics[name], rel=1e-4), name


def test_axes_that_nothing_comes_through_are_found(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SETS", {"all_photographs": photographs.NAMED[:2]})
    torch.manual_seed(0)
    made = LGQModel(LGQConfig(**LGQModel.from_pretrained(model).config.to_diff_dict() | {"code_dim": 4}))
    with torch.no_grad():
        made.pre_quant.weight.copy_(torch.randn_like(made.pre_quant.weight))
        made.post_quant.weight[:, 2] = 0
    made.save_pretrained(model)
    loaded = load_checkpoint(str(model), "cpu")
    shares = checkpoint.latent_axes(loaded, draws=4)
    assert shares is not None
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)
    assert shares[2] > 1e-4
    assert shares[3] < 1e-9
    assert shares == checkpoint.latent_axes(loaded, draws=4)
    line = card.axes_line({"latent_axes": shares})
    assert line.startswith(
        f"The latents' 4 axes: of what changes the photographs, to first order, they have {shares[0]:.1%}, "
    )
