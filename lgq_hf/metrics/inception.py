"""The Inception network of 2015 by which FID is defined (Heusel et al. 2017), with weights from a file.

It is Inception-v3 (Szegedy et al. 2016) as TensorFlow released it on 2015-12-05, with 1008 classes; torchvision's
network of that name has other weights and other poolings. Its weights were converted once for PyTorch, by the
pytorch-fid project, and are around under two names that mean one file (Apache-2.0): pytorch-fid's
pt_inception-2015-12-05-6726825d.pth, and weights-inception-2015-12-05-6726825d.pth of torch-fidelity, which
torchmetrics takes too. No weights come with this package and none are downloaded.
"""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lgq_hf.metrics.frozen import FrozenNetwork, read_weights, sha256_of

REFERENCE_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
INCEPTION_FILE = (
    "the Inception weights of FID (pytorch-fid's pt_inception-2015-12-05-6726825d.pth, or the same file as "
    "torch-fidelity's weights-inception-2015-12-05-6726825d.pth)"
)
_SIZE = 299  # pixels, of the pictures it was trained on
_NORM_EPSILON = 1e-3
_NORM = ("weight", "bias", "running_mean", "running_var")

_Layer = tuple[int, int, int]  # channels, height and width of the kernel
_Branches = dict[str, list[list[_Layer]]]  # steps one after the other, in each of them layers side by side
_Pool = Literal["average", "largest", "halving"]


class _Convolution(nn.Conv2d):
    """A convolution with its batch norm folded in, and a ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(super().forward(x), inplace=True)


class _Block(nn.Module):
    """Branches side by side, their outputs joined in this order; `branch_pool` begins with a pooling of 3 x 3.

    Convolutions keep the size, except that in a block that halves it the last of each branch has stride 2 and pads
    nothing. Modules are called as in the file of weights.
    """

    def __init__(self, channels: int, branches: _Branches, pool: _Pool = "average") -> None:
        super().__init__()
        self._pool = pool
        self._steps: dict[str, list[list[str]]] = {}
        self.channels = 0
        for branch, steps in branches.items():
            width, self._steps[branch] = channels, []
            for i, layers in enumerate(steps, start=1):
                halves = pool == "halving" and i == len(steps)
                name = branch if len(steps) == 1 else f"{branch}_{i}"
                names = [name] if len(layers) == 1 else [name + letter for letter in "ab"]
                for layer, (out, high, wide) in zip(names, layers, strict=True):
                    stride, padding = (2, (0, 0)) if halves else (1, (high // 2, wide // 2))
                    self.add_module(layer, _Convolution(width, out, (high, wide), stride, padding))
                width = sum(out for out, *_ in layers)
                self._steps[branch].append(names)
            self.channels += width

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for branch, steps in self._steps.items():
            y = self._pooled(x) if branch == "branch_pool" else x
            for names in steps:
                y = torch.cat([self.get_submodule(name)(y) for name in names], 1)
            outputs.append(y)
        return torch.cat(outputs, 1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self._pool == "average":  # over what lies inside the picture, unlike torchvision's
            return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        if self._pool == "largest":
            return functional.max_pool2d(x, 3, stride=1, padding=1)
        return functional.max_pool2d(x, 3, stride=2)


def _fives(pooled: int) -> _Branches:
    return {
        "branch1x1": [[(64, 1, 1)]],
        "branch5x5": [[(48, 1, 1)], [(64, 5, 5)]],
        "branch3x3dbl": [[(64, 1, 1)], [(96, 3, 3)], [(96, 3, 3)]],
        "branch_pool": [[(pooled, 1, 1)]],
    }


def _sevens(inner: int) -> _Branches:
    across, down = (inner, 1, 7), (inner, 7, 1)
    return {
        "branch1x1": [[(192, 1, 1)]],
        "branch7x7": [[(inner, 1, 1)], [across], [(192, 7, 1)]],
        "branch7x7dbl": [[(inner, 1, 1)], [down], [across], [down], [(192, 1, 7)]],
        "branch_pool": [[(192, 1, 1)]],
    }


_FORK: list[_Layer] = [(384, 1, 3), (384, 3, 1)]
_THREES: _Branches = {
    "branch1x1": [[(320, 1, 1)]],
    "branch3x3": [[(384, 1, 1)], _FORK],
    "branch3x3dbl": [[(448, 1, 1)], [(384, 3, 3)], _FORK],
    "branch_pool": [[(192, 1, 1)]],
}
_TO_17: _Branches = {
    "branch3x3": [[(384, 3, 3)]],
    "branch3x3dbl": [[(64, 1, 1)], [(96, 3, 3)], [(96, 3, 3)]],
    "branch_pool": [],
}
_TO_8: _Branches = {
    "branch3x3": [[(192, 1, 1)], [(320, 3, 3)]],
    "branch7x7x3": [[(192, 1, 1)], [(192, 1, 7)], [(192, 7, 1)], [(192, 3, 3)]],
    "branch_pool": [],
}
_BLOCKS: dict[str, tuple[_Branches, _Pool]] = {
    "Mixed_5b": (_fives(32), "average"),
    "Mixed_5c": (_fives(64), "average"),
    "Mixed_5d": (_fives(64), "average"),
    "Mixed_6a": (_TO_17, "halving"),
    "Mixed_6b": (_sevens(128), "average"),
    "Mixed_6c": (_sevens(160), "average"),
    "Mixed_6d": (_sevens(160), "average"),
    "Mixed_6e": (_sevens(192), "average"),
    "Mixed_7a": (_TO_8, "halving"),
    "Mixed_7b": (_THREES, "average"),
    "Mixed_7c": (_THREES, "largest"),  # so in the network that FID is defined by, and in no other Inception
}


class _Network(nn.Module):
    """(B,2048,8,8) of pictures (B,3,299,299) in [-1, 1]; `fc` gives the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = _Convolution(80, 192, 3)
        channels = 192
        for name, (branches, pool) in _BLOCKS.items():
            block = _Block(channels, branches, pool)
            self.add_module(name, block)
            channels = block.channels
        self.fc = nn.Linear(channels, 1008)

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = functional.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = functional.max_pool2d(x, 3, stride=2)
        for name in _BLOCKS:
            x = self.get_submodule(name)(x)
        return x


class InceptionV3Fid(FrozenNetwork):
    """Frozen features and class scores of 8-bit pictures; not differentiable in them, as they are rounded.

    Pictures are (B,3,H,W), RGB, floating point in [0, 1], of any size. They are taken for 8-bit pictures and rounded
    to k / 255, then resized to 299 x 299 pixels without antialiasing, as in the original code. How matters: numbers
    made with one `resize` cannot be compared with those of another.

    Convolutions run in the dtype of the weights (fp32, or TF32 where torch's settings let cuDNN) or in that of
    `torch.autocast`: compute figures without it. Everything returned is fp32.

    Args:
        weights: file with the weights, .pth or .safetensors. A file with other numbers is not refused, but recorded:
            see `is_reference`.
        resize: "tensorflow" places pixel i of the new picture at i * old / new of the old one, as TensorFlow 1 did and
            as torch-fidelity (and torchmetrics with antialias=False) do; "torch" places it at (i + 1/2) * old / new -
            1/2, as pytorch-fid does. The former scales values k to (k - 128) / 128, the latter to 2 k / 255 - 1.

    Attributes:
        weights_sha256: of the file.
        preparation: what is done to pictures first, to write beside a number.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another `resize`, or the file is not what is meant: not a state dict, tensors that are missing or
            left over (counts of batches apart, which do nothing), NaN or infinities, or variances below 0.
        RuntimeError: tensors of another shape, from torch.
    """

    name = "inception-2015"
    dimensions = 2048

    def __init__(self, weights: str | Path, *, resize: Literal["tensorflow", "torch"] = "tensorflow") -> None:
        super().__init__()
        if resize not in ("tensorflow", "torch"):
            raise ValueError(f"resize: expected tensorflow or torch, got {resize!r}")
        self.resize = resize
        self.preparation = f"8 bits, {_SIZE} x {_SIZE} pixels, bilinear as in {resize}, not antialiased"
        with torch.device("meta"):  # nothing is initialised, and no random numbers are drawn
            self.network = _Network()
        self.network.load_state_dict(_load(weights, self.network), assign=True)
        self.weights_sha256 = sha256_of(weights)
        self.freeze()

    @property
    def is_reference(self) -> bool:
        """Whether the weights are the file that both projects publish (`REFERENCE_SHA256`): only then is it FID's."""
        return self.weights_sha256 == REFERENCE_SHA256

    def pooled(self, pictures: Tensor) -> Tensor:
        """The 2048 features before the classes ("pool3"), averaged over positions.

        Args:
            pictures: as in the class. Looking at their range waits for the device.

        Returns:
            (B,2048) fp32, at least 0.

        Raises:
            ValueError: another shape, integers, or values outside [0, 1].
        """
        x = self._prepare(pictures, 1)
        if len(x):
            low, high = (float(value) for value in x.aminmax())
            if not (low >= 0 and high <= 1):  # also where they are NaN
                raise ValueError(f"pictures: expected values in [0, 1], got {low:.4g} to {high:.4g}")
        x = (x * 255).round()
        if self.resize == "tensorflow":
            x = (_resized_like_tensorflow(x) - 128) / 128
        else:
            x = functional.interpolate(x / 255, (_SIZE, _SIZE), mode="bilinear", align_corners=False) * 2 - 1
        return self.network(x).float().mean((2, 3))

    def logits(self, pictures: Tensor) -> Tensor:
        """Scores of its 1008 classes, in its own order, which is not that of ImageNet-1k; (B,1008) fp32.

        Raises:
            ValueError: as in `pooled`.
        """
        return self.network.fc(self.pooled(pictures).to(self.network.fc.weight.dtype)).float()


def _load(path: str | Path, network: _Network) -> dict[str, Tensor]:
    """The state of the network, with batch norms folded into the convolutions before them."""
    convolutions = [name for name, module in network.named_modules() if isinstance(module, _Convolution)]
    names = [name for name in network.state_dict() if name.startswith("fc.")]
    for name in convolutions:
        names += [f"{name}.conv.weight", *(f"{name}.bn.{part}" for part in _NORM)]
    state = read_weights(path, "weights", INCEPTION_FILE, names, ignored=".bn.num_batches_tracked")
    folded = {name: state[name] for name in state if name.startswith("fc.")}
    for name in convolutions:
        scale, bias, mean, variance = (state[f"{name}.bn.{part}"].double() for part in _NORM)
        if float(variance.min()) < 0:
            lowest = f"{name}.bn.running_var: expected variances of at least 0, got {float(variance.min()):.3g}"
            raise ValueError(f"weights: {path}: {lowest}; expected {INCEPTION_FILE}")
        scale = scale / (variance + _NORM_EPSILON).sqrt()
        folded[f"{name}.weight"] = (state[f"{name}.conv.weight"].double() * scale[:, None, None, None]).float()
        folded[f"{name}.bias"] = (bias - mean * scale).float()
    return folded


def _resized_like_tensorflow(x: Tensor) -> Tensor:
    """(B,C,299,299) of (B,C,H,W): along either side, between the pixels on both sides of i * old / 299."""
    for dim in (3, 2):
        old = x.shape[dim]
        place = torch.arange(_SIZE, dtype=torch.float32, device=x.device) * (old / _SIZE)
        before = place.long()
        part = (place - before).to(x.dtype).view(-1, *[1] * (3 - dim))
        x, after = x.index_select(dim, before), x.index_select(dim, (before + 1).clamp(max=old - 1))
        x = x + (after - x) * part
    return x


__all__ = ["INCEPTION_FILE", "REFERENCE_SHA256", "InceptionV3Fid"]
