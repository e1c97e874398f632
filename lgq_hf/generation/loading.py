"""Loads a pipeline of either kind."""

import os
from typing import Any

import torch

from lgq_hf.generation.pipeline_autoregressive import LGQAutoregressivePipeline
from lgq_hf.generation.pipeline_base import LGQPipeline, class_name, local_folder
from lgq_hf.generation.pipeline_masked import LGQMaskedPipeline

PIPELINES: dict[str, type[LGQPipeline]] = {cls.__name__: cls for cls in (LGQAutoregressivePipeline, LGQMaskedPipeline)}


def load_pipeline(
    place: str | os.PathLike[str],
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Any:
    """Loads the pipeline in a folder, or in a repository of the Hub, of whichever class it is.

    Args:
        place: folder, or repository.
        device: of torch's; "auto": a GPU if there is one.
        dtype: of the weights; `None`: as saved. The codebook stays fp32.
        revision, token, cache_dir, local_files_only: for a repository, as in `snapshot_download`.

    Returns:
        A `LGQMaskedPipeline` or a `LGQAutoregressivePipeline`.

    Raises:
        ValueError: no pipeline there, or one of another package; options of the Hub for a folder; or a device that is
            missing.
    """
    hub = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    folder = local_folder(place, {name: value for name, value in hub.items() if value not in (None, False)})
    found = class_name(folder)
    if found not in PIPELINES:
        raise ValueError(f"{os.fspath(place)!r} holds a {found}: expected one of {sorted(PIPELINES)}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device}: torch finds no CUDA device here; leave it out, or use cpu")
    options = {} if dtype is None else {"dtype": dtype}
    return PIPELINES[found].from_pretrained(folder, **options).to(device)


__all__ = ["PIPELINES", "load_pipeline"]
