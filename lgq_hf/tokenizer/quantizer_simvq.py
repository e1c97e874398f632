"""SimVQ (arXiv 2411.02038; youngsheen/SimVQ): a frozen table seen through one learned linear map."""

from .quantizer_vq import VQQuantizer


class SimVQQuantizer(VQQuantizer):
    """The nearest of the projected codes, C = W E + b; `codebook` holds C, computed once."""

    name = "simvq"


__all__ = ["SimVQQuantizer"]
