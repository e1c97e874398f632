import datasets
import numpy as np
import pytest

from lgq_hf import LGQConfig
from lgq_hf.images.sources import SIZES, TOKENS
from lgq_hf.tokens.plan import token_dtype, token_features


@pytest.mark.parametrize(("codes", "dtype"), [(2, np.uint16), (2**16, np.uint16), (2**16 + 1, np.uint32)])
def test_the_narrowest_type_that_holds_every_token(codes: int, dtype: type) -> None:
    assert token_dtype(codes) == dtype
    with pytest.raises(ValueError, match="codebook_size.*4294967297"):
        token_dtype(2**32 + 1)


def test_the_types_of_columns() -> None:
    config = LGQConfig(codebook_size=16384)  # f16
    assert token_features(config, 256) == {TOKENS: datasets.Array2D((16, 16), "uint16")}
    assert token_features(config, (250, 480)) == {TOKENS: datasets.Array2D((16, 30), "uint16")}
    several = LGQConfig(codebook_mode="per_channel", codebook_size=8, latent_channels=6)
    assert token_features(several, 64) == {TOKENS: datasets.Array3D((4, 4, 6), "uint16")}
    ragged = token_features(LGQConfig(codebook_size=2**18))
    assert ragged[TOKENS] == datasets.List(datasets.Value("uint32"))
    assert {name: ragged[name] for name in SIZES} == dict.fromkeys(SIZES, datasets.Value("int32"))
    with pytest.raises(ValueError, match=r"\(0, 16\)"):
        token_features(config, (0, 16))


def test_torch_gets_grids_of_int64() -> None:
    config = LGQConfig(codebook_size=2**18)
    grids = np.arange(2 * 4 * 8, dtype=np.uint32).reshape(2, 4, 8) + 2**17
    table = datasets.Dataset.from_dict({TOKENS: grids}, features=token_features(config, (64, 128)))
    row = table.with_format("torch")[1][TOKENS]
    assert (str(row.dtype), tuple(row.shape)) == ("torch.int64", (4, 8))
    assert np.array_equal(row.numpy(), grids[1])
    assert table.data.table.column(TOKENS).chunk(0).storage.flatten().flatten().type == "uint32"
