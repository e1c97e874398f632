"""What is measured, on which images, by which networks, and when a Fréchet distance may be called rFID.

Shapes: B images of a batch, H W pixels, M classes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from lgq_hf.images.views import Preprocessing
from lgq_hf.metrics.extractors import Extractor
from lgq_hf.tokens.engine import ON_ERROR

FID_EXTRACTOR = "inception-2015"
FID_PICTURES = 50_000
FRECHET, RFID = "frechet_distance", "rfid"


def frechet_key(extractor: str, pictures: int, reference: bool = True) -> str:
    """What the Fréchet distance of reconstructions and originals is called in a result.

    Args:
        extractor: the name of the network that made the features.
        pictures: how many different pictures were compared; several crops of one picture count once.
        reference: whether its weights are those that everybody uses.

    Returns:
        "rfid" for the features of Heusel et al. 2017 ("inception-2015") on 50,000 pictures or more, else
        "frechet_distance".
    """
    return RFID if extractor == FID_EXTRACTOR and pictures >= FID_PICTURES and reference else FRECHET


def frechet_label(key: str, extractor: str, pictures: int) -> str:
    """That name for people, with what the number depends on; `key` as `frechet_key` gives it."""
    if key == RFID:
        return f"rFID ({extractor}, {pictures:,} pictures)"
    return f"Fréchet distance of {extractor} features ({pictures:,} pictures; not rFID)"


EMA = ("yes", "no", "unknown")
Watch = Callable[[int, int], None]


class Distance(Protocol):
    """A distance of pictures in the features of a network; attributes as in `Extractor`."""

    name: str
    weights_sha256: str

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """(B,) of two batches (B,3,H,W) in [0, 1]."""


class Classifier(Protocol):
    """A classifier of pictures; attributes as in `Extractor`."""

    name: str
    weights_sha256: str

    def logits(self, pictures: Tensor) -> Tensor:
        """(B,M) of pictures (B,3,H,W) in [0, 1]."""


@dataclass(frozen=True)
class Settings:
    """How a tokenizer is evaluated. Its dtype and device are those of the checkpoint that is given.

    Attributes:
        preprocessing: what is cut out of each picture. Without a size, pictures keep theirs, which may differ: each
            size goes through the model by itself.
        batch_size: pictures that go through the model together; the last ones of one size are filled up to it where
            `preprocessing` has a size, as `lgq tokenize` does, so that no number depends on what else is there.
        limit: how many pictures of the source are taken, at least 2, drawn by the seed without repetition; `None`:
            all.
        seed: of that choice; nothing else is drawn.
        ema: whether the weights are a moving average, for the protocol: "yes", "no" or "unknown"; `None`: what
            stands beside the checkpoint, see `ema_of`.
        on_error: "stop" at a picture that cannot be read, or "skip" it and list it in the protocol.
        num_workers: processes that read pictures ahead; 0: they are read when they are needed.

    Raises:
        ValueError: a value out of range.
    """

    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    batch_size: int = 16
    limit: int | None = None
    seed: int = 0
    ema: str | None = None
    on_error: str = "stop"
    num_workers: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {self.batch_size}")
        if self.limit is not None and self.limit < 2:
            raise ValueError(f"limit: expected at least 2 pictures or None, got {self.limit}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed: expected a number in [0, 2^63), got {self.seed}")
        if self.ema is not None and self.ema not in EMA:
            raise ValueError(f"ema: expected one of {list(EMA)} or None, got {self.ema!r}")
        if self.on_error not in ON_ERROR:
            raise ValueError(f"on_error: expected one of {list(ON_ERROR)}, got {self.on_error!r}")
        if self.num_workers < 0:
            raise ValueError(f"num_workers: expected 0 or more, got {self.num_workers}")


@dataclass(frozen=True)
class Networks:
    """The frozen networks of an evaluation, all on the model's device; `None`: that number is left out."""

    extractor: Extractor
    perceptual: Distance | None = None
    classifier: Classifier | None = None
    lpips: Distance | None = None
