"""Index backpropagation quantization (arXiv 2412.02692; TencentARC/SEED-Voken)."""

from .quantizer_vq import VQQuantizer


class IBQQuantizer(VQQuantizer):
    """The code with the largest scalar product, z . e_k, wins: no norm of code or latent enters."""

    name = "ibq"


__all__ = ["IBQQuantizer"]
