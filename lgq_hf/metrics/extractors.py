"""Networks whose pooled features sets of pictures are compared by, one interface for all."""

from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor

from lgq_hf.metrics.efficientnet import EfficientNetLite0
from lgq_hf.metrics.inception import InceptionV3Fid


class Extractor(Protocol):
    """What makes one feature vector of each picture, for `FeatureStatistics` and `precision_recall`.

    Attributes:
        name: what a number is called after; numbers made with different names cannot be compared.
        weights_sha256: of the files its weights came from, hexadecimal.
        preparation: what `pooled` does to pictures before the network sees them.
        dimensions: D, features of one picture.
    """

    name: str
    weights_sha256: str
    preparation: str
    dimensions: int

    def pooled(self, pictures: Tensor) -> Tensor:
        """(B,D) fp32 of pictures (B,3,H,W), floating point in [0, 1], on the device of the network."""


def build_extractor(
    name: Literal["efficientnet-lite0", "inception-2015"],
    weights: str | Path | None = None,
    *,
    resize: Literal["tensorflow", "torch"] | None = None,
) -> EfficientNetLite0 | InceptionV3Fid:
    """The extractor of that name.

    Args:
        name: "efficientnet-lite0" needs no file, "inception-2015" needs one.
        weights: for "inception-2015" only, see `InceptionV3Fid`.
        resize: for "inception-2015" only, see there; "tensorflow" by default.

    Raises:
        ValueError: another name, no file where one is needed, an argument the name has no use for, or a file that is
            not what is meant.
        FileNotFoundError: no such file.
        ModuleNotFoundError: the packages of the extra `metrics` are missing, for "efficientnet-lite0".
    """
    if name == "efficientnet-lite0":
        given = [option for option, value in (("weights", weights), ("resize", resize)) if value is not None]
        if given:
            raise ValueError(f"{' and '.join(given)}: only for inception-2015, got the name {name}: leave out")
        return EfficientNetLite0()
    if name == "inception-2015":
        if weights is None:
            raise ValueError("inception-2015 needs a file: give weights. Nothing is downloaded; see InceptionV3Fid")
        return InceptionV3Fid(weights, resize="tensorflow" if resize is None else resize)
    raise ValueError(f"extractor: expected efficientnet-lite0 or inception-2015, got {name!r}")


__all__ = ["Extractor", "build_extractor"]
