"""Small models for the tests: a later quantizer, backbone or option gets every model test by a line in `MODELS`."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():  # Triton reads it when it is imported: its kernels then run on CPU tensors
    os.environ.setdefault("TRITON_INTERPRET", "1")
# without it MKL's products round by place and alignment of a row on many CPUs, and tests compare bit for bit
os.environ.setdefault("MKL_CBWR", "COMPATIBLE")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # tests that fill new memory need deterministic products

from lgq_hf import LGQConfig, LGQModel
from tests.hub_server import Hub, serve, turn_to
from tests.ranks import Ranks

_SMALL = {
    "base_channels": 8,
    "channel_multiplier": [1, 2, 2],
    "num_res_blocks": 1,
    "latent_channels": 8,
    "codebook_size": 32,
    "temperature": 0.5,
    "image_size": 32,
}

_VQGAN = {"backbone": "vqgan", "norm_num_groups": 4}
_NOT_LGQ = {"temperature": 1.0}  # where there is none, it stays at its default
_BARE = {"conv_bias": False, "mid_attention": False, "decoder_extra_block": False, "encoder_out_kernel": 1}

# what each configuration changes of `_SMALL`; its name says what it is there for
MODELS: dict[str, dict[str, Any]] = {
    "sq_l2": {},
    "l2_widths_f8": {"channel_multiplier": [1, 1, 2, 2], "distance": "l2", "learn_widths": True},
    "cosine_no_attention": {"distance": "cosine", "bottleneck_attention": False, "lambda_floor": 0.1},
    "dot_legacy_decoder": {"distance": "dot", "legacy_decoder": True, "base_channels": 48, "num_res_blocks": 2},
    "identity_projected_f16": {
        "channel_multiplier": [1, 1, 1, 2, 2],
        "code_dim": 5,
        "straight_through": "identity",
        "commitment_weight": 0.25,
        "learn_widths": True,
    },
    "per_channel": {"codebook_mode": "per_channel", "codebook_size": 6},
    "per_channel_widths": {"codebook_mode": "per_channel", "codebook_size": 6, "learn_widths": True, "code_dim": 3},
    "no_latent_norm": {"latent_group_norm": False, "code_dim": 4},
    "one_channel": {"codebook_mode": "per_channel", "codebook_size": 6, "code_dim": 1},
    "product": {"codebook_mode": "product", "levels": [4, 4, 2], "code_dim": 3},
    "product_identity": {
        "codebook_mode": "product",
        "levels": [2, 4, 4],
        "latent_channels": 3,
        "straight_through": "identity",
    },
    "vqgan_lgq": {**_VQGAN, "attention_levels": [2], "code_dim": 4},
    "vqgan_vq": {**_VQGAN, **_NOT_LGQ, "quantizer": "vq", "code_dim": 8, "stem_channels": 4, "mid_attention": False},
    "vqgan_vq_cosine": {
        **_VQGAN,
        **_NOT_LGQ,
        "quantizer": "vq",
        "distance": "cosine",
        "code_dim": 4,
        "attention_levels": [1, 2],
    },
    "vqgan_ibq": {**_VQGAN, **_NOT_LGQ, "quantizer": "ibq", "distance": "dot", "num_res_blocks": 2},
    "maskgit": {
        **_VQGAN,
        **_NOT_LGQ,
        **_BARE,
        "quantizer": "vq",
        "downsample": "avg_pool",
        "shortcut_on_hidden": True,
    },
    "simvq": {**_VQGAN, **_NOT_LGQ, **_BARE, "quantizer": "simvq", "downsample": "conv", "upsample": "depth_to_space"},
    "magvit2": {
        **_VQGAN,
        **_NOT_LGQ,
        **_BARE,
        "quantizer": "lfq",
        "codebook_size": 256,
        "downsample": "conv",
        "upsample": "depth_to_space",
        "adaptive_group_norm": True,
    },
    "fsq": {**_NOT_LGQ, "quantizer": "fsq", "levels": [4, 4, 2], "code_dim": 3},
    "bsq": {**_NOT_LGQ, "quantizer": "bsq", "code_dim": 5, "entropy_weight": 0.1, "entropy_temperature": 1.0},
    "simvq_learned": {**_NOT_LGQ, "quantizer": "simvq", "learn_projection": True, "code_dim": 4},
    "vq_ema": {**_NOT_LGQ, "quantizer": "vq", "codebook_update": "ema", "code_dim": 4},
    "wetok": {
        **_VQGAN,
        **_NOT_LGQ,
        **_BARE,
        "quantizer": "lfq",
        "codebook_size": 16,
        "downsample": "conv",
        "upsample": "depth_to_space",
        "adaptive_group_norm": True,
        "num_mid_blocks": 1,
    },
}
# one for each quantizer, for what takes long and does not depend on the rest
EACH_QUANTIZER = [
    "sq_l2",
    "per_channel_widths",
    "vqgan_vq_cosine",
    "vqgan_ibq",
    "simvq_learned",
    "vq_ema",
    "fsq",
    "wetok",
]


@pytest.fixture
def empty_is_nan() -> Iterator[None]:
    """`torch.empty` gives NaN, so that an element that nobody wrote is seen."""
    torch.use_deterministic_algorithms(True)  # fills, with torch.utils.deterministic.fill_uninitialized_memory
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def _build(name: str, *, seed: int = 0, **changes: Any) -> LGQModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LGQModel(LGQConfig(**{**_SMALL, **MODELS[name], **changes})).eval()
        with torch.no_grad():  # so that nothing stands where its initialisation left it
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
            for buffer in model.buffers():
                if buffer.is_floating_point():
                    buffer.mul_(0.75)
    return model


def _pixels(model: LGQModel, batch: int = 2, grid: tuple[int, int] = (2, 3), seed: int = 1) -> torch.Tensor:
    factor = model.config.spatial_downsample_factor
    shape = (batch, model.config.in_channels, grid[0] * factor, grid[1] * factor)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small tensors are computed faster by one thread than by several that wait for a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """`ranks(function, *arguments)`: what a function of a module's top level returns in each of two gloo ranks."""
    pool = Ranks()
    yield pool
    pool.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests that share the two ranks run in one of xdist's workers."""
    for item in items:
        if "ranks" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("ranks"))


@pytest.fixture(scope="session")
def build_model() -> Callable[..., LGQModel]:
    """`build_model(name, seed=0, **config_changes)`: a model of `MODELS` in evaluation mode, the same each time."""
    return _build


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty Hub on this machine that uploads of this process go to."""
    with serve() as hub:
        turn_to(hub, tmp_path, monkeypatch)
        yield hub


@pytest.fixture(scope="session")
def make_pixels() -> Callable[..., torch.Tensor]:
    """`make_pixels(model, batch=2, grid=(2, 3), seed=1)`: noise in [-1, 1] that makes `grid` tokens."""
    return _pixels


@pytest.fixture(params=EACH_QUANTIZER)
def case(request: pytest.FixtureRequest) -> str:
    """A name in `MODELS`, one for each quantizer; `parametrize("case", MODELS, indirect=True)` takes all of them."""
    return request.param


@pytest.fixture(params=EACH_QUANTIZER)
def trainable(request: pytest.FixtureRequest) -> LGQModel:
    """A model whose quantizer has a loss, in evaluation mode."""
    return _build(request.param)


@pytest.fixture
def model(case: str) -> LGQModel:
    """The model of `case`, in evaluation mode."""
    return _build(case)
