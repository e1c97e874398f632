"""Pictures of whole datasets to token shards, and token shards to what generators train on.

`EncodeImages` and `DecodeTokens` are for `datasets.map`, `tokenize` writes shards with a manifest, `TokenDataset` and
the collators read them.
"""

from lgq_hf.images.sources import open_source
from lgq_hf.images.views import Preprocessing

from .collators import AutoregressiveCollator, MaskedCollator
from .engine import tokenize
from .manifest import check_tokenizer, read_manifest, verify
from .map_callables import DecodeTokens, EncodeImages
from .plan import Encoding, token_features
from .reading import EpochSampler, TokenDataset, TokenStream

__all__ = [
    "AutoregressiveCollator",
    "DecodeTokens",
    "EncodeImages",
    "Encoding",
    "EpochSampler",
    "MaskedCollator",
    "Preprocessing",
    "TokenDataset",
    "TokenStream",
    "check_tokenizer",
    "open_source",
    "read_manifest",
    "token_features",
    "tokenize",
    "verify",
]
