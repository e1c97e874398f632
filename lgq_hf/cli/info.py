"""`lgq info`: what a checkpoint is, and what its tokens cost."""

import argparse
import json
import math
from collections import Counter
from typing import Any

import numpy as np

from lgq_hf.checkpoint.loading import SHORT, Checkpoint, load_checkpoint

# where the parts of a model that are neither encoder, quantizer nor decoder are counted
_PARTS = {"pre_quant_norm": "encoder", "pre_quant": "encoder", "post_quant": "decoder"}


def run(args: argparse.Namespace) -> int:
    """Prints the facts about `args.model`, as JSON if `args.json`; returns 0.

    Raises:
        ValueError: the model cannot be loaded.
    """
    facts = describe(load_checkpoint(args.model, "cpu"))
    print(json.dumps(facts, indent=2) if args.json else as_text(facts))
    return 0


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Facts about a checkpoint by name, of JSON's types; sizes in pixels, tokens, bits or bytes as they are named."""
    config, processor = checkpoint.config, checkpoint.processor
    parameters: Counter[str] = Counter()
    for name, parameter in checkpoint.model.named_parameters():
        part = name.partition(".")[0]
        parameters[_PARTS.get(part, part)] += parameter.numel()
    normal = processor.do_normalize
    side = math.ceil(config.image_size / config.spatial_downsample_factor)
    return {
        "model": checkpoint.name,
        "fingerprint": checkpoint.fingerprint,
        "backbone": config.backbone,
        "base_channels": config.base_channels,
        "channel_multiplier": list(config.channel_multiplier),
        "num_res_blocks": config.num_res_blocks,
        "decoder_num_res_blocks": list(config.decoder_num_res_blocks) if config.decoder_num_res_blocks else None,
        "attention": config.has_attention,
        "latent_channels": config.latent_channels,
        "downsample_factor": config.spatial_downsample_factor,
        "quantizer": config.quantizer,
        "codebook_mode": config.codebook_mode,
        "codebook_size": config.codebook_size,
        "code_dim": config.quantizer_dim,
        "distance": config.distance,
        "image_size": config.image_size,
        "token_grid": [side, side, *([config.tokens_per_position] if config.tokens_per_position > 1 else [])],
        "tokens_per_picture": config.num_image_tokens,
        "bits_per_pixel": config.bits_per_pixel,
        "bits_per_picture": config.num_image_tokens * math.log2(config.codebook_size),
        "parameters": {**parameters, "total": sum(parameters.values())},
        "image_mean": np.broadcast_to(processor.image_mean if normal else 0.0, config.in_channels).tolist(),
        "image_std": np.broadcast_to(processor.image_std if normal else 1.0, config.in_channels).tolist(),
        "converted_from": config.converted_from,
        "weights_bytes": sum(file.stat().st_size for file in checkpoint.folder.glob("*.safetensors")),
    }


def as_text(facts: dict[str, Any]) -> str:
    """The facts as aligned lines for people."""
    stages = " ".join(map(str, facts["channel_multiplier"]))
    attention = "with" if facts["attention"] else "no"
    decoder = f" (decoder: {' '.join(map(str, blocks))})" if (blocks := facts["decoder_num_res_blocks"]) else ""
    quantizer = [facts["quantizer"], facts["codebook_mode"], facts["distance"]]
    if facts["quantizer"] != "lgq":
        quantizer = [facts["quantizer"], "signs" if facts["quantizer"] == "lfq" else facts["distance"]]
    source = facts["converted_from"]
    size = facts["image_size"]
    rows = [
        ("model", facts["model"]),
        ("fingerprint", facts["fingerprint"][:SHORT]),
        ("weights", f"{facts['weights_bytes'] / 1e6:.2f} MB"),
        *([("converted from", f"{source['file']} ({source['project']}, {source['weights']})")] if source else []),
        ("", ""),
        ("backbone", f"{facts['backbone']}, {facts['base_channels']} channels times {stages}"),
        ("", f"{facts['num_res_blocks']} residual blocks per stage{decoder}, {attention} attention"),
        ("latent channels", facts["latent_channels"]),
        ("quantizer", ", ".join(quantizer)),
        ("codebook", f"{facts['codebook_size']:,} codes of {facts['code_dim']} channels"),
        ("parameters", f"{facts['parameters']['total']:,}"),
        *((f"  {part}", f"{facts['parameters'].get(part, 0):,}") for part in ("encoder", "quantizer", "decoder")),
        ("", ""),
        ("downsampling", f"{facts['downsample_factor']} pixels per token along each side"),
        ("token grid", f"{' x '.join(map(str, facts['token_grid']))} for {size} x {size} pixels"),
        ("tokens per picture", f"{facts['tokens_per_picture']:,}"),
        ("bits per picture", f"{facts['bits_per_picture']:,.0f}"),
        ("bits per pixel", f"{facts['bits_per_pixel']:.4g}"),
        ("pixel mean", " ".join(f"{value:g}" for value in facts["image_mean"])),
        ("pixel deviation", " ".join(f"{value:g}" for value in facts["image_std"])),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in rows)
