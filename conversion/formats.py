"""The formats that can be read: which one a file is, and what it is converted by."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from conversion import diffusers_vq, lgq_official, llamagen, magvit2, maskgit, taming
from conversion.family import shorten
from conversion.plan import CheckpointError, Plan, Weights

Configs = Mapping[str, Mapping[str, Any]]


class Format(NamedTuple):
    """A source format.

    Attributes:
        project: its name.
        url: where it is.
        code_licence: of the project's code; weights may have another.
        config: `"yaml"` or `"json"`, the kind of configuration that comes along, or `None`.
        plan: file, configuration or `None`, choice of weights -> plan.
    """

    project: str
    url: str
    code_licence: str
    config: str | None
    plan: Callable[[Mapping[str, Any], Mapping[str, Any] | None, Weights], Plan]


def _official(content: Mapping[str, Any], config: Mapping[str, Any] | None, weights: Weights) -> Plan:
    if weights == "ema":
        raise CheckpointError("--weights ema: the official LGQ trainer keeps no moving averages")
    return lgq_official.plan(dict(content))


_SEED_VOKEN = "https://github.com/TencentARC/SEED-Voken"
FORMATS = {
    "lgq_official": Format("LGQ", "https://github.com/KurbanIntelligenceLab/LGQ", "MIT", None, _official),
    "taming": Format(
        "taming-transformers",
        "https://github.com/CompVis/taming-transformers",
        "MIT",
        "yaml",
        partial(taming.plan, format="taming"),
    ),
    "llamagen": Format(
        "LlamaGen",
        "https://github.com/FoundationVision/LlamaGen",
        "MIT",
        None,
        lambda content, _, weights: llamagen.plan(content, weights),
    ),
    "janus": Format("Janus", "https://github.com/deepseek-ai/Janus", "MIT", "json", llamagen.janus_plan),
    "ibq": Format("IBQ", _SEED_VOKEN, "Apache-2.0", "yaml", partial(taming.plan, format="ibq")),
    "magvit2": Format("Open-MAGVIT2", _SEED_VOKEN, "Apache-2.0", "yaml", partial(magvit2.plan, format="magvit2")),
    "simvq": Format(
        "SimVQ", "https://github.com/youngsheen/SimVQ", "MIT", "yaml", partial(magvit2.plan, format="simvq")
    ),
    "wetok": Format(
        "WeTok",
        "https://github.com/zhuangshaobin/WeTok",
        "Apache-2.0",
        "yaml",
        partial(magvit2.plan, format="wetok"),
    ),
    "maskgit": Format(
        "MaskGIT-VQGAN of open-muse and 1d-tokenizer",
        "https://github.com/bytedance/1d-tokenizer",
        "Apache-2.0",
        "json",
        maskgit.plan,
    ),
    "diffusers": Format(
        "diffusers' VQModel",
        "https://github.com/huggingface/diffusers",
        "Apache-2.0",
        "json",
        partial(diffusers_vq.plan, format="diffusers"),
    ),
    "amused": Format(
        "aMUSEd",
        "https://github.com/huggingface/amused",
        "Apache-2.0",
        "json",
        partial(diffusers_vq.plan, format="amused"),
    ),
}
# the class that a YAML names, by how it ends
_TARGETS = {
    "taming.models.vqgan.VQModel": "taming",
    "taming.models.vq.VQModel": "simvq",
    "ldm.models.autoencoder.VQModel": "taming",  # latent-diffusion's, the same net and names
    "ldm.models.autoencoder.VQModelInterface": "taming",
    "IBQ.models.ibqgan.IBQ": "ibq",
    "Open_MAGVIT2.models.lfqgan.VQModel": "magvit2",
    "WeTok.models.lfqgan.VQModel": "wetok",
}
# formats that some file's tensors can have, by a key that only they have; the configuration decides between several
_LAYOUTS: list[tuple[str, tuple[str, ...]]] = [
    (r"encoder\.down_blocks\.\d+\.resnets\.", ("diffusers", "amused")),
    (r"decoder\.up\.\d+\.upsample_conv\.", ("maskgit",)),
    (r"quantize\.embedding_proj\.", ("simvq",)),
    (r"encoder\.mid_block\.\d+\.norm1\.", ("magvit2", "wetok")),
    (r"(gen_vision_model|(model\.)?vqmodel)\.encoder\.", ("janus",)),
    (r"decoder\.up\.0\.upsample\.conv\.", ("janus",)),  # transformers numbers stages from the lowest resolution
    (r"encoder\.conv_blocks\.\d+\.res\.", ("llamagen",)),
    (r"encoder\.down\.\d+\.block\.", ("taming", "ibq")),
]


def weight_names(content: Mapping[str, Any]) -> list[str]:
    """Names of the tensors in a file, wherever it keeps them, without wrappers' prefixes."""
    for entry in ("state_dict", "model", "ema"):
        if isinstance(content.get(entry), Mapping):
            content = content[entry]
            break
    names = [key for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)]
    return [re.sub(r"^(?:module\.|_orig_mod\.)+", "", name) for name in names]


def possible(content: Mapping[str, Any]) -> tuple[str, ...]:
    """The formats whose names a file's tensors have; several where only a configuration tells.

    Raises:
        CheckpointError: where it is none of [`FORMATS`].
    """
    if lgq_official.recognise(content):
        return ("lgq_official",)
    names = weight_names(content)
    taming.refuse_gumbel(names)
    fitting = [formats for pattern, formats in _LAYOUTS if any(re.match(pattern, name) for name in names)]
    if not fitting:
        raise CheckpointError(_unknown(content, names))
    if not any(re.search(r"(^|\.)decoder\.", name) for name in names):
        raise CheckpointError("the checkpoint has an encoder and no decoder: tokens could not become pictures again")
    return fitting[0]


def recognise(content: Mapping[str, Any], configs: Configs) -> str:
    """Name of a file's format.

    Args:
        content: the file.
        configs: by kind (`"yaml"`, `"json"`), the configuration that came along.

    Raises:
        CheckpointError: where it is none of [`FORMATS`], where several fit and nothing tells which, and where the
            configuration names another.
    """
    fitting = possible(content)
    kind = FORMATS[fitting[0]].config
    if kind == "json":
        return _by_json(fitting, configs.get("json"))
    if kind is None or "yaml" not in configs:
        if len(fitting) > 1:
            raise CheckpointError(
                f"{' and '.join(fitting)} keep the same tensors and look codes up differently: give the YAML that "
                f"came with the checkpoint (--config FILE), or say which it is (--format {'|'.join(fitting)})"
            )
        return fitting[0]
    target = target_of(configs["yaml"])
    named = format_of(target)
    if named is None:
        raise CheckpointError(
            f"the YAML configuration names the class {target!r:.100}, which is none of the known {shorten(_TARGETS)}. "
            f"If its net is the same, say so: --format {'|'.join(fitting)}"
        )
    if named not in fitting:
        raise CheckpointError(
            f"the YAML configuration is of a {named} model ({target}), and the tensors are those of "
            f"{' or '.join(fitting)}"
        )
    return named


def _by_json(fitting: tuple[str, ...], config: Mapping[str, Any] | None) -> str:
    if fitting == ("diffusers", "amused"):
        return "amused" if config is not None and config.get("lookup_from_codebook") else "diffusers"
    return fitting[0]


def target_of(config: Mapping[str, Any]) -> str | None:
    """The class that a YAML configuration names, if it names one."""
    model = config.get("model")
    return model.get("target") or model.get("class_path") if isinstance(model, Mapping) else None


def format_of(target: str | None) -> str | None:
    """The format of the checkpoints of a class; `None` for an unknown one."""
    return next((name for end, name in _TARGETS.items() if target and f".{target}".endswith(f".{end}")), None)


def check_choice(name: str, configs: Configs) -> None:
    """Refuses a format that was asked for and that the configuration contradicts (`CheckpointError`)."""
    if FORMATS[name].config == "yaml" and "yaml" in configs:
        target = target_of(configs["yaml"])
        if format_of(target) not in (None, name):
            raise CheckpointError(
                f"--format {name}, and the YAML configuration names {target}, of {format_of(target)}"
            )
    if name == "amused" and configs.get("json", {}).get("lookup_from_codebook") is False:
        raise CheckpointError("--format amused, and config.json has lookup_from_codebook=false: it is another VQModel")
    if name == "diffusers" and configs.get("json", {}).get("lookup_from_codebook"):
        raise CheckpointError(
            "--format diffusers, and config.json has lookup_from_codebook=true: it is an aMUSEd VQ-GAN"
        )


def _unknown(content: Mapping[str, Any], names: list[str]) -> str:
    seen = shorten(names) if names else f"no tensors by name, but the entries [{shorten(map(str, content))}]"
    return f"expected a checkpoint of {', '.join(FORMATS)}; the file has {seen}"


__all__ = ["FORMATS", "Format", "check_choice", "format_of", "possible", "recognise", "target_of", "weight_names"]
