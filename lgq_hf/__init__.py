"""LGQ image tokenizers for the Hugging Face ecosystem.

`LGQTokenizer.from_pretrained(...)` gives the model, `LGQImageProcessor.from_pretrained(...)` its image processor.
"""

from pathlib import Path

from transformers import AutoConfig, AutoImageProcessor, AutoModel

from ._version import __version__
from .kernels.ops import define_operators
from .tokenizer.assignment import use_operators
from .tokenizer.configuration_lgq import LGQConfig
from .tokenizer.image_processing_lgq import LGQImageProcessor
from .tokenizer.modeling_lgq import LGQDecoderOutput, LGQEncoderOutput, LGQModel, LGQOutput

use_operators(define_operators)

# The class itself must not have "Tokenizer" in its name: transformers would save it as a text tokenizer.
LGQTokenizer = LGQModel

AutoConfig.register("lgq", LGQConfig, exist_ok=True)
AutoModel.register(LGQConfig, LGQModel, exist_ok=True)
AutoImageProcessor.register(LGQConfig, image_processor_classes={"pil": LGQImageProcessor}, exist_ok=True)
# saved checkpoints carry the code of the tokenizer folder, for `trust_remote_code=True` without this package
LGQConfig.register_for_auto_class()
LGQModel.register_for_auto_class("AutoModel")
LGQImageProcessor.register_for_auto_class()


def default_checkpoint() -> Path:
    """Folder of the checkpoint inside the package: works without a network (see its README.md)."""
    return Path(__file__).parent / "pretrained" / "lgq-tiny"


__all__ = [
    "LGQConfig",
    "LGQDecoderOutput",
    "LGQEncoderOutput",
    "LGQImageProcessor",
    "LGQModel",
    "LGQOutput",
    "LGQTokenizer",
    "__version__",
    "default_checkpoint",
]
