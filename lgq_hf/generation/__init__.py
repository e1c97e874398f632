"""Generators that consume tokens: a masked transformer, an autoregressive Llama, and their pipelines.

`LGQMaskedPipeline` and `LGQAutoregressivePipeline` need diffusers (the extra `generate`) and are imported when
they are first used; the networks need transformers alone.
"""

import importlib
from typing import Any

from transformers import AutoConfig, AutoModel

from .configuration_masked import LGQMaskedConfig
from .llama import llama_config
from .modeling_masked import LGQMaskedOutput, LGQMaskedTransformer

AutoConfig.register("lgq_masked", LGQMaskedConfig, exist_ok=True)
AutoModel.register(LGQMaskedConfig, LGQMaskedTransformer, exist_ok=True)
LGQMaskedConfig.register_for_auto_class()
LGQMaskedTransformer.register_for_auto_class("AutoModel")

_NEED_DIFFUSERS = {
    "LGQAutoregressivePipeline": "pipeline_autoregressive",
    "LGQMaskedPipeline": "pipeline_masked",
    "LGQPipelineOutput": "pipeline_base",
    "VQModelAdapter": "vq_model",
    "load_pipeline": "loading",
}


def __getattr__(name: str) -> Any:
    if name not in _NEED_DIFFUSERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f".{_NEED_DIFFUSERS[name]}", __name__)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "diffusers":
            raise
        raise ModuleNotFoundError(
            f"{name} needs the package diffusers: pip install '.[generate]' in a checkout of lgq_hf"
        ) from error
    return getattr(module, name)


__all__ = [
    "LGQAutoregressivePipeline",
    "LGQMaskedConfig",
    "LGQMaskedOutput",
    "LGQMaskedPipeline",
    "LGQMaskedTransformer",
    "LGQPipelineOutput",
    "VQModelAdapter",
    "llama_config",
    "load_pipeline",
]
