"""The space in which each quantizer compares, pictures into latents, the command, its table and its picture."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.equal_budget import crops, geometry_plots
from benchmarks.equal_budget.geometry import (
    DEFINITIONS,
    PICTURE,
    codes_of,
    gather,
    main,
    measure,
    render_geometry,
)
from benchmarks.equal_budget.geometry_measures import NEIGHBOURS, Geometry, Sample
from lgq_hf import LGQConfig, LGQImageProcessor, LGQModel
from lgq_hf.checkpoint.loading import Checkpoint
from lgq_hf.images.views import Preprocessing

SMALL: dict[str, Any] = {
    "base_channels": 8,
    "channel_multiplier": [1, 1, 1],
    "num_res_blocks": 1,
    "bottleneck_attention": False,
    "latent_channels": 8,
    "codebook_size": 16,
    "code_dim": 4,
    "image_size": 32,
}
QUANTIZED: dict[str, dict[str, Any]] = {
    "lgq": {},
    "lgq_l2": {"distance": "l2"},
    "lgq_cosine": {"distance": "cosine"},
    "lgq_dot": {"distance": "dot"},
    "lgq_product": {"codebook_mode": "product", "levels": [4, 2, 2], "code_dim": 3},
    "vq": {"quantizer": "vq"},
    "vq_cosine": {"quantizer": "vq", "distance": "cosine"},
    "simvq": {"quantizer": "simvq", "learn_projection": True},
    "fsq": {"quantizer": "fsq", "levels": [5, 4, 3], "code_dim": 3, "codebook_size": 60},
    "ifsq": {"quantizer": "fsq", "levels": [8, 2], "code_dim": 2, "fsq_bound": "sigmoid"},
    "lfq": {"quantizer": "lfq"},
    "bsq": {"quantizer": "bsq"},
    "ibq": {"quantizer": "ibq", "distance": "dot"},
}


def made(name: str, **changes: Any) -> LGQModel:
    """A model with random weights, among them the codes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LGQModel(LGQConfig(**{**SMALL, **QUANTIZED[name], **changes})).eval()
        with torch.no_grad():
            for parameter in model.quantizer.parameters():
                parameter.normal_()
    return model


class Pictures:
    """A source of squares of noise, of the sides given, that writes down what is read."""

    kind, name, features = "folder", "noise", {}

    def __init__(self, sides: list[int]) -> None:
        self.sides, self.seen = sides, []

    def __len__(self) -> int:
        return len(self.sides)

    def read(self, index: int) -> Image.Image:
        self.seen.append(index)
        rng = np.random.default_rng(index)
        shape = (self.sides[index], self.sides[index], 3)
        return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))


def checkpoint_of(model: LGQModel) -> Checkpoint:
    processor = LGQImageProcessor(pad_to_multiple_of=4)
    return Checkpoint("made", Path(), model, processor, torch.device("cpu"))


@pytest.mark.parametrize("name", QUANTIZED)
def test_tokens_name_the_nearest_code_in_the_space_where_they_are_compared(name: str) -> None:
    model = made(name)
    quantizer = model.quantizer
    dim = model.config.quantizer_dim
    x_NC = torch.randn(400, dim, generator=torch.Generator().manual_seed(1)) * 1.5
    tokens_N = quantizer(x_NC.T.reshape(1, dim, 20, 20)).image_tokens.flatten()
    space_NC, codes_KC = quantizer.comparable(x_NC.double()), codes_of(quantizer)
    assert space_NC.dtype == codes_KC.dtype == torch.float64
    assert codes_KC.shape == (model.config.codebook_size, dim)
    if model.config.distance == "dot":
        assert torch.equal((space_NC @ codes_KC.T).argmax(1), tokens_N)
    else:
        assert torch.equal(torch.cdist(space_NC, codes_KC).argmin(1), tokens_N)


def test_spaces() -> None:
    x_NC = torch.tensor([[3.0, 0, 4, 0], [0, 0.5, 0, 0]], dtype=torch.float64)
    on_sphere = torch.tensor([[0.6, 0, 0.8, 0], [0, 1, 0, 0]], dtype=torch.float64)
    for name in ("lgq_cosine", "vq_cosine", "bsq"):
        quantizer = made(name).quantizer
        torch.testing.assert_close(quantizer.comparable(x_NC), on_sphere)
        torch.testing.assert_close(codes_of(quantizer).norm(dim=1), torch.ones(16, dtype=torch.float64))
    for name in ("lgq", "lfq", "ibq", "simvq", "lgq_dot"):
        assert torch.equal(made(name).quantizer.comparable(x_NC), x_NC)
    fsq = made("fsq").quantizer
    bounded = fsq.comparable(torch.tensor([[0.0, 0, 0], [99, 99, 99], [-99, -99, -99]], dtype=torch.float64))
    # levels 5, 4 and 3: codes in steps of 1/2, 1/2 and 1, of which 0 is one; the bounds are half a step further out
    expected = [[0, 0, 0], [1.001, 0.50075, 1.001], [-1.001, -1.00075, -1.001]]
    torch.testing.assert_close(bounded, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)


def test_several_tokens_for_a_position_are_refused() -> None:
    model = made("lgq", codebook_mode="per_channel")
    with pytest.raises(ValueError, match="one token for each position, got 4"):
        measure(checkpoint_of(model), Pictures([32] * 4))


def test_pictures_of_any_size_and_a_limit_that_spreads() -> None:
    source = Pictures([32, 32, 48, 40, 32, 32, 32, 32])
    checkpoint = checkpoint_of(made("vq"))
    whole = gather(checkpoint, source)
    per_picture = [(side // 4) ** 2 for side in source.sides]
    assert source.seen == list(range(8)) and whole.pictures == 8
    halves = [[number % 2 == 1] * count for number, count in enumerate(per_picture)]
    assert whole.second_N.tolist() == [half for several in halves for half in several]
    alone = gather(checkpoint, Pictures(source.sides[:3]))
    torch.testing.assert_close(whole.latents_NC[: len(alone.latents_NC)], alone.latents_NC)
    source.seen.clear()
    assert gather(checkpoint, source, 4).pictures == 4 and source.seen == [0, 2, 4, 6]
    cut = gather(checkpoint, source, preprocessing=Preprocessing(size=24))
    assert len(cut.latents_NC) == 8 * 36
    for limit in (1, 9):
        with pytest.raises(ValueError, match=f"from 2 to 8 pictures of noise, got {limit}"):
            gather(checkpoint, source, limit)
    with pytest.raises(ValueError, match="expected one view"):
        gather(checkpoint, source, preprocessing=Preprocessing(flip=True))


def work_folder(folder: Path) -> Path:
    """Crops and runs of the scale "quick": one method finished, one failed, the others not run."""
    place = folder / "quick"
    (place / "crops").mkdir(parents=True)
    (place / "crops" / crops.MANIFEST).write_text(json.dumps({"settings": {"size": 32}}))
    source = Pictures([32] * 6)
    rows = {"image": [source.read(index) for index in range(6)], "id": [str(index) for index in range(6)]}
    features = datasets.Features({"image": datasets.Image(), "id": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features).to_parquet(place / "crops" / "test-00000.parquet")
    for method, told in (("lgq", {}), ("fsq", {"failed": "the loss is NaN"})):
        run = place / f"compare-{method}-k16-seed0"
        run.mkdir()
        result = {"setting": 1, "chosen": {"model.lambda_usage": 0.05}, "crops": "c", "commit": "d", **told}
        (run / "result.json").write_text(json.dumps(result))
    made("lgq").save_pretrained(place / "compare-lgq-k16-seed0" / "final")
    LGQImageProcessor(pad_to_multiple_of=4).save_pretrained(place / "compare-lgq-k16-seed0" / "final")
    return folder


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = work_folder(tmp_path / "work")
    places = ["--work", str(work), "--results", str(tmp_path / "results"), "--images", str(tmp_path / "images")]
    assert main(["quick", *places]) == 0
    result = json.loads((tmp_path / "results" / "equal_budget_geometry_quick.json").read_text())
    assert result["scale"] == "quick" and list(result["methods"]) == ["lgq", "fsq"]
    row = result["methods"]["lgq"]
    assert (row["label"], row["setting"], row["latents"], row["codebook_size"]) == ("LGQ", 1, 6 * 64, 16)
    assert result["methods"]["fsq"]["failed"] == "the loss is NaN"
    assert set(DEFINITIONS) <= set(row)
    assert str(tmp_path) not in json.dumps(result)
    picture = tmp_path / "images" / PICTURE
    assert picture.stat().st_size < 400_000 and Image.open(picture).size[0] == 1050
    lines = render_geometry(result).splitlines()
    assert lines[2].startswith("| LGQ | ") and lines[3].startswith("| FSQ | failed: the loss is NaN | ")
    assert len({line.count(" | ") for line in lines[:1] + lines[2:4]}) == 1
    assert f"its {NEIGHBOURS} nearest latents" in "\n".join(lines) and "{" not in "\n".join(lines)


def _geometry(latents: Tensor, codes: Tensor) -> Geometry:
    second = torch.arange(len(latents)) % 2 == 1
    return Geometry(Sample(latents, torch.cdist(latents, codes).argmin(1), codes, second, len(latents)))


def test_picture_of_odd_codebooks(tmp_path: Path) -> None:
    x_NC = torch.randn(500, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    heap_NC = torch.cat([torch.zeros(80, 3, dtype=torch.float64), x_NC])
    in_heap_and_far = torch.cat([heap_NC[[0, 300, 301]], heap_NC[:1] + 1000])
    several = {
        "one channel in_use $": _geometry(x_NC[:, :1], x_NC[:9, :1]),
        "infinite density, and far away": _geometry(heap_NC, in_heap_and_far),
    }
    geometry_plots.draw(several, tmp_path / "odd.png", "odd")
    with Image.open(tmp_path / "odd.png") as picture:
        assert picture.mode == "P" and len(np.unique(np.asarray(picture))) > 20
