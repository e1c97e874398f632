"""Photographs and networks that several tests of this folder look at."""

import pytest
import torch
from skimage import data
from torch import Tensor

from lgq_hf.metrics.efficientnet import EfficientNetLite0


@pytest.fixture(scope="session")
def network() -> EfficientNetLite0:
    return EfficientNetLite0()


@pytest.fixture(scope="session")
def photographs() -> dict[str, Tensor]:
    """(1,3,h,w) in [0, 1]."""
    names = ("chelsea", "coffee", "astronaut")
    return {name: torch.from_numpy(getattr(data, name)()).permute(2, 0, 1)[None] / 255 for name in names}
