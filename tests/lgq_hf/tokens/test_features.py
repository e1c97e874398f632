import datasets
import numpy as np
import pytest

from lgq_hf import LGQConfig
from lgq_hf.images.sources import SIZES, TOKENS
from lgq_hf.tokens.features import grid_of, token_dtype, token_features


def test_the_narrowest_type_that_holds_every_token() -> None:
    assert token_dtype(2) == np.uint16
    assert token_dtype(2**16) == np.uint16
    assert token_dtype(2**16 + 1) == np.uint32
    assert token_dtype(2**32) == np.uint32
    for count in (0, 2**32 + 1):
        with pytest.raises(ValueError, match=rf"codebook_size: expected 1 to 2\*\*32.*got {count}"):
            token_dtype(count)


def test_fixed_sizes_have_the_grid_in_the_type() -> None:
    config = LGQConfig(codebook_size=16384)  # f16
    assert token_features(config, 256) == {TOKENS: datasets.Array2D((16, 16), "uint16")}
    assert token_features(config, (250, 480)) == {TOKENS: datasets.Array2D((16, 30), "uint16")}
    assert grid_of(config, (250, 480)) == (16, 30)
    with pytest.raises(ValueError, match=r"size: expected height and width of at least 1 pixel, got \(0, 16\)"):
        token_features(config, (0, 16))


def test_other_types() -> None:
    wide = LGQConfig(codebook_size=2**18)
    assert token_features(wide, 64) == {TOKENS: datasets.Array2D((4, 4), "uint32")}
    several = LGQConfig(codebook_mode="per_channel", codebook_size=8, latent_channels=6)
    assert token_features(several, 64) == {TOKENS: datasets.Array3D((4, 4, 6), "uint16")}
    ragged = token_features(wide)
    assert ragged[TOKENS] == datasets.List(datasets.Value("uint32"))
    assert {name: ragged[name] for name in SIZES} == dict.fromkeys(SIZES, datasets.Value("int32"))


def test_torch_gets_grids_of_int64() -> None:
    config = LGQConfig(codebook_size=2**18)
    grids = np.arange(2 * 4 * 8, dtype=np.uint32).reshape(2, 4, 8) + 2**17
    table = datasets.Dataset.from_dict({TOKENS: grids}, features=token_features(config, (64, 128)))
    row = table.with_format("torch")[1][TOKENS]
    assert (str(row.dtype), tuple(row.shape)) == ("torch.int64", (4, 8))
    assert np.array_equal(row.numpy(), grids[1])
    assert table.data.table.column(TOKENS).chunk(0).storage.flatten().flatten().type == "uint32"


def test_without_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lgq_hf\[tokenize\]'"):
        token_features(LGQConfig())
