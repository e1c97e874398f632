"""Checkpoints of the LGQ paper's own trainer (KurbanIntelligenceLab/LGQ): `best_model.pt` and its siblings.

Shapes: b base width, C latent channels, D channels that the quantizer receives, K codes, L levels of one channel.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from conversion.family import check_fit, compare, shorten
from conversion.plan import CheckpointError, Plan
from conversion.weights import is_state_dict, strip_wrappers
from lgq_hf import LGQConfig, LGQModel
from lgq_hf.tokenizer.assignment import Distance

FORMAT = "lgq_official"
CHANNEL_MULTIPLIER = [1, 2, 2, 2, 2]
NUM_RES_BLOCKS = 2
NUM_ATTENTION_HEADS = 4
DISTANCES: dict[str, Distance] = {"l2_sq": "sq_l2", "cosine": "cosine", "dot": "dot"}
_MODELS = ("lgq", "lmb")  # the second is the name of early releases
_DEFAULT_LEVELS = [16, 16, 8, 8]
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
# what the trainer keeps beside the weights and their arguments
_ENTRIES = {
    "epoch": "trainer: progress of the run",
    "global_step": "trainer: progress of the run",
    "best_val_loss": "trainer: progress of the run",
    "train_metrics": "trainer: measurements of the run",
    "eval_metrics": "trainer: measurements of the run",
    "train_history": "trainer: measurements of the run",
    "run_name": "trainer: name of the run",
    "optimizer_state_dict": "trainer: optimizer",
    "disc_state_dict": "trainer: discriminator",
    "opt_disc_state_dict": "trainer: optimizer of the discriminator",
}
_READ = ("model_state_dict", "config", "model_type")
_BUFFERS = {
    "quantize._inited": "trainer: flag of the codebook's initialisation",
    "quantize._dbg_usage": "trainer: what it logged",
    "quantize._dbg_avg_max_p": "trainer: what it logged",
    "quantize._dbg_soft_perplexity": "trainer: what it logged",
}
_STAGES = ["256", "128", "64", "32", "16"]  # names of the stages, whatever the picture's size
_BLOCK_NAMES = {"norm1": "in_norm", "norm2": "out_norm"}
# our names to official ones, in this order
_RULES = [
    (r"encoder\.downsamplers\.(\d)\.(\w+)", lambda m: f"enc.down{int(m[1]) + 1}.conv.{m[2]}"),
    (r"decoder\.upsamplers\.(\d)\.(\w+)", lambda m: f"dec.up{int(m[1]) + 1}.deconv.{m[2]}"),
    (r"encoder\.stages\.(\d)\.(\d)\.(\w+)\.(\w+)", lambda m: _block("enc", _STAGES, m)),
    (r"decoder\.stages\.(\d)\.(\d)\.(\w+)\.(\w+)", lambda m: _block("dec", _STAGES[::-1], m)),
    (r"(en|de)coder\.(.+)", lambda m: {"en": "enc.", "de": "dec."}[m[1]] + m[2]),
    (r"pre_quant_norm\.(\w+)", lambda m: f"pre_vq_norm.{m[1]}"),
    (r"quantizer\.(centers|alpha)", lambda m: f"quantize.{m[1]}"),
    (r"(?:pre|post)_quant\.\w+", lambda m: m[0]),
]


def _block(side: str, stages: list[str], match: re.Match[str]) -> str:
    stage, block, layer, leaf = match.groups()
    return f"{side}.block_{stages[int(stage)]}.{block}.{_BLOCK_NAMES.get(layer, layer)}.{leaf}"


def official_names(config: LGQConfig) -> dict[str, str]:
    """Official key by our name, of every tensor of the model that the official code keeps in its state dict."""
    with torch.device("meta"):
        ours = LGQModel(config).state_dict()
    names = {}
    for name in ours:
        fitting = ((re.fullmatch(pattern, name), target) for pattern, target in _RULES)
        found = next((target(match) for match, target in fitting if match), None)
        if found is not None:  # the temperature is an argument there
            names[name] = found
    return names


def unbuildable(config: LGQConfig) -> str | None:
    """Why the official code cannot build a net of these widths; `None` where it can."""
    widths = {2 * config.base_channels: "base_channels", config.base_channels: "base_channels"}
    bottleneck = [2 * config.base_channels]
    if config.legacy_decoder:
        bottleneck.append(max(32, config.latent_channels))
        widths.setdefault(bottleneck[1], "latent_channels")
    for width, field in widths.items():
        stage = f"{field}={getattr(config, field)} gives a stage of {width} channels"
        if width > 32 and width % 32:
            return f"{stage}, which 32 groups do not divide"
        heads = min(NUM_ATTENTION_HEADS, max(1, width // 4))
        if config.bottleneck_attention and width in bottleneck and width % heads:
            return f"{stage}, which {heads} heads do not divide"
    return None


def recognise(checkpoint: Mapping[str, Any]) -> bool:
    """Whether the keys are those of the official trainer, of any release and with any quantizer."""
    state = checkpoint.get("model_state_dict", checkpoint)
    return isinstance(state, Mapping) and any(str(key).endswith("enc.block_256.0.in_norm.weight") for key in state)


def plan(checkpoint: dict[str, Any]) -> Plan:
    """The conversion of the official trainer's dictionary.

    Args:
        checkpoint: with `model_state_dict` and `config`, the trainer's arguments. Shapes are read from the tensors;
            the arguments decide what those do not show (distance, mode, weights of the loss, temperature).

    Raises:
        CheckpointError: for keys that are missing or unknown, arguments that differ from the tensors, nets that the
            official code does not build, a codebook that was never initialised, and early releases without
            `enc.emb_norm`, whose encoder is another net under the same names.
    """
    options, state, dropped = _open(checkpoint)
    keys = strip_wrappers(state)
    source = {name: state[key] for name, key in keys.items()}
    _check_release(source)
    fields, notes = _fields(source, options)
    config = _config(fields)
    names = official_names(config)
    if unknown := sorted(set(source) - set(names.values()) - set(_BUFFERS)):
        raise CheckpointError(f"{len(unknown)} keys that this model of the official code lacks: {shorten(unknown)}")
    if missing := sorted(set(names.values()) - set(source)):
        raise CheckpointError(f"the checkpoint is not whole, it lacks {len(missing)} keys: {shorten(missing)}")
    if next(iter(keys)) != keys[next(iter(keys))]:
        notes.append("The keys came with a prefix of DataParallel or torch.compile, which was taken off.")
    made = Plan(
        format=FORMAT,
        config=config,
        processor={"do_normalize": True, **_IMAGENET, "pad_to_multiple_of": config.spatial_downsample_factor},
        tensors={name: source[key] for name, key in names.items()},
        sources={name: keys[key] for name, key in names.items()},
        dropped=dropped | {keys[name]: reason for name, reason in _BUFFERS.items() if name in keys},
        notes=notes,
    )
    made.tensors["quantizer.temperature"] = torch.tensor(float(config.temperature))
    made.sources["quantizer.temperature"] = f"config.{_last_tau(options)}"
    made.baked["quantizer.temperature"] = f"config.{_last_tau(options)}, the temperature that training ends at"
    check_fit(made)
    return made


def _open(checkpoint: dict[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Tensor], dict[str, str]]:
    """The trainer's arguments, the state dict, and what else the file holds with the reason for leaving it."""
    if missing := {"model_state_dict", "config"} - set(checkpoint):
        raise CheckpointError(
            f"expected the dictionary that the official LGQ trainer saves, got one without {sorted(missing)}: the "
            "arguments in 'config' decide what the weights do not show, so give its .pt file as it is"
        )
    if unknown := sorted(set(checkpoint) - set(_ENTRIES) - set(_READ)):
        raise CheckpointError(
            f"the official LGQ trainer does not save {shorten(unknown)}: take out what is not needed, if it is not"
        )
    options, state = checkpoint["config"], checkpoint["model_state_dict"]
    if not isinstance(options, Mapping):
        raise CheckpointError(f"expected the trainer's arguments by name in 'config', got {type(options).__name__}")
    if not isinstance(state, Mapping) or not is_state_dict(state):
        raise CheckpointError("expected a dictionary of tensors in 'model_state_dict', got something else")
    for name, model in {"model_type": checkpoint.get("model_type"), "config.model": options.get("model")}.items():
        if model is not None and model not in _MODELS:
            raise CheckpointError(
                f"{name} is {model!r}: of the official trainer's models only {_MODELS} are converted"
            )
    return options, state, {name: reason for name, reason in _ENTRIES.items() if name in checkpoint}


def _check_release(source: Mapping[str, Tensor]) -> None:
    if "enc.emb_norm.weight" not in source and "enc.to_emb.weight" in source:
        raise CheckpointError(
            "the checkpoint has no enc.emb_norm: it is of an early release, whose encoder is another net under the "
            "same names; only the release that wrote it reads it"
        )
    # zeros are what the official code allocates
    if (
        int(source.get("quantize._inited", torch.tensor(1))) == 0
        or not source.get("quantize.centers", torch.ones(1)).any()
    ):
        raise CheckpointError(
            "the codebook was never initialised (quantize._inited or all of quantize.centers is 0): the model saw no "
            "batch; take a checkpoint of a run that trained"
        )


def _shape(source: Mapping[str, Tensor], key: str, rank: int) -> tuple[int, ...]:
    if key not in source:
        raise CheckpointError(f"the checkpoint is not whole, it lacks {key}")
    shape = tuple(source[key].shape)
    if len(shape) != rank or 0 in shape:
        raise CheckpointError(f"expected {rank} dimensions, none of them 0, for {key}, got shape {shape}")
    return shape


def _net(source: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the encoder and the decoder."""
    base, in_channels = _shape(source, "enc.stem.weight", 4)[:2]
    if in_channels != 3:
        raise CheckpointError(f"enc.stem takes {in_channels} channels: expected 3, ImageNet's normalised colours")
    widths = [base] + [_shape(source, f"enc.down{i}.conv.weight", 4)[0] for i in range(1, 5)]
    if widths != [base * multiplier for multiplier in CHANNEL_MULTIPLIER]:
        raise CheckpointError(
            f"the encoder's stages have {widths} channels: expected {CHANNEL_MULTIPLIER} times the first, the one "
            "pattern of the official code"
        )
    for side in ("enc", "dec"):
        for stage in _STAGES:
            if f"{side}.block_{stage}.{NUM_RES_BLOCKS}.conv1.weight" in source:
                raise CheckpointError(
                    f"{side}.block_{stage} has more than {NUM_RES_BLOCKS} residual blocks, which the official code "
                    "always has"
                )
    latent_channels = _shape(source, "enc.to_emb.weight", 4)[0]
    decoder, legacy = _shape(source, "dec.from_emb.weight", 4)[0], max(32, latent_channels)
    if decoder not in (2 * base, legacy):
        raise CheckpointError(
            f"dec.from_emb has {decoder} channels: expected {2 * base} like the encoder, or {legacy} (legacy decoder)"
        )
    same = 2 * base == legacy
    return {
        "base_channels": base,
        "in_channels": in_channels,
        "channel_multiplier": list(CHANNEL_MULTIPLIER),
        "num_res_blocks": NUM_RES_BLOCKS,
        "num_attention_heads": NUM_ATTENTION_HEADS,
        "bottleneck_attention": "enc.block_16.2.q.weight" in source,
        "legacy_decoder": bool(options.get("legacy_decoder", False)) if same else decoder == legacy,
        "latent_channels": latent_channels,
        "code_dim": _shape(source, "pre_quant.weight", 4)[0] if "pre_quant.weight" in source else None,
    }


def _is_flat(source: Mapping[str, Tensor], options: Mapping[str, Any], dim: int) -> bool:
    """Whether `quantize.centers` is one codebook (K, D), and no table of bins per channel (D, K)."""
    # without the argument the official code takes bins per channel
    said = bool(options.get("flatten_channels", False))
    shape = _shape(source, "quantize.centers", 2)
    usage = source.get("quantize._dbg_usage")
    square = shape[0] == shape[1]
    flat = shape[1] == dim and not (square and usage is not None and usage.shape == shape)
    table = shape[0] == dim and not (square and usage is not None and usage.shape == shape[:1])
    if not (flat if said else table):
        found = "is absent, which is False" if "flatten_channels" not in options else f"is {said}"
        raise CheckpointError(
            f"flatten_channels {found} in config, so expected quantize.centers of shape "
            f"{f'(K, {dim})' if said else f'({dim}, K)'} and quantize._dbg_usage like it; got {shape}, and "
            f"{None if usage is None else tuple(usage.shape)}. Some early files have them transposed: which mode they "
            "are of cannot be told, so they are not converted"
        )
    return said


def _levels(options: Mapping[str, Any]) -> list[int] | None:
    levels = options.get("lmb_levels")
    levels = [levels] if isinstance(levels, int) else levels
    if levels is not None and not (isinstance(levels, list | tuple) and all(isinstance(n, int) for n in levels)):
        raise CheckpointError(f"lmb_levels in the checkpoint's config: expected integers, got {levels!r}")
    return None if levels is None else list(levels)


def _quantizer(source: Mapping[str, Tensor], options: Mapping[str, Any], net: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the codebook."""
    dim = net["code_dim"] or net["latent_channels"]
    flat = _is_flat(source, options, dim)
    centers = source["quantize.centers"]
    found: dict[str, Any] = {"learn_widths": "quantize.alpha" in source}
    if flat:
        return found | {"codebook_mode": "vector", "codebook_size": centers.shape[0]}
    if net["code_dim"] is None:
        return found | {"codebook_mode": "per_channel", "codebook_size": centers.shape[1]}
    if "lmb_levels" not in options:
        raise CheckpointError("the checkpoint's config lacks lmb_levels, the number of bins of each channel")
    # rows shorter than the longest are filled with zeros that no gradient reaches
    levels = [max((i + 1 for i, value in enumerate(row) if value != 0), default=0) for row in centers.tolist()]
    return found | {"codebook_mode": "product", "codebook_size": math.prod(levels), "levels": levels}


def _compare(options: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Refuses arguments that say something else than the tensors (`CheckpointError`)."""
    fair, levels, dim = found["code_dim"] is not None, _levels(options), options.get("dim")
    product = found["codebook_mode"] == "product"
    said_fair = options.get("perchannel_fair")
    if said_fair is not None:
        said_fair = bool(said_fair and (_DEFAULT_LEVELS if levels is None else levels))
    found_levels: Any = found.get("levels")
    if fair and not product and levels is not None:  # only their number and their product are in the tensors
        wanted = (found["code_dim"], found["codebook_size"])
        same = (len(levels), math.prod(levels)) == wanted
        found_levels = levels if same else f"{wanted[0]} levels with the product {wanted[1]}"
    half = isinstance(dim, int) and dim // 2 == found["base_channels"]  # rounded down, as there
    fields = {
        "dim": (dim, dim if half else 2 * found["base_channels"]),
        "embedding_dim": (options.get("embedding_dim"), found["latent_channels"]),
        "legacy_decoder": (options.get("legacy_decoder"), found["legacy_decoder"]),
        "perchannel_fair": (said_fair, fair),
        "lmb_levels": (levels if fair else None, found_levels),
        "num_bins": (None if fair else options.get("num_bins"), found["codebook_size"]),
        "learn_widths": (None if product else options.get("learn_widths"), found["learn_widths"]),
    }
    compare(fields, "the checkpoint's config")


def _number(options: Mapping[str, Any], name: str) -> float:
    if name not in options:
        raise CheckpointError(f"the checkpoint's config lacks {name}, which the weights do not show")
    value = options[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise CheckpointError(f"{name} in the checkpoint's config: expected a number of at least 0, got {value!r}")
    return value


def _last_tau(options: Mapping[str, Any]) -> str:
    return "tau_start" if options.get("tau_schedule") == "const" else "tau_end"


def _fields(source: Mapping[str, Tensor], options: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """All fields of our configuration, and notes for the user."""
    net = _net(source, options)
    found = net | _quantizer(source, options, net)
    _compare(options, found)
    notes = []
    distance = options.get("distance_type", "l2_sq")
    if distance not in DISTANCES:
        raise CheckpointError(
            f"distance_type in the checkpoint's config: expected one of {list(DISTANCES)}, got {distance!r}"
        )
    if found["codebook_mode"] != "vector" and distance != "l2_sq":
        notes.append(f"distance_type={distance!r} has no effect: scalar bins are compared by squared distance.")
        distance = "l2_sq"
    return found | {
        "distance": DISTANCES[distance],
        "temperature": _number(options, _last_tau(options)),
        "lambda_peak": _number(options, "lambda_peak"),
        "lambda_usage": _number(options, "lambda_bins"),
        "lambda_floor": _number(options, "lambda_floor"),
        "min_perplexity": _number(options, "p_min"),
        "image_size": _number(options, "image_size"),
    }, notes


def _config(fields: dict[str, Any]) -> LGQConfig:
    try:
        config = LGQConfig(**fields)
    except Exception as error:  # huggingface_hub's own classes, which share no base but this
        raise CheckpointError(f"the checkpoint does not make a model: {error}") from error
    if reason := unbuildable(config):
        raise CheckpointError(f"the official code does not build such a net: {reason}")
    return config


__all__ = [
    "CHANNEL_MULTIPLIER",
    "DISTANCES",
    "FORMAT",
    "NUM_ATTENTION_HEADS",
    "NUM_RES_BLOCKS",
    "official_names",
    "plan",
    "recognise",
    "unbuildable",
]
