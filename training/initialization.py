"""Where a tokenizer's run starts: another model's weights, and latents aligned with what they change in the image."""

import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers.utils import cached_file

from lgq_hf import LGQConfig, LGQImageProcessor, LGQModel

DECODER_STAGE = re.compile(r"(decoder\.(?:stages|upsamplers)\.)(\d+)")
# the last convolution of a residual block or of attention, by the stage that it is in
BLOCK_END = re.compile(r"(.*\.(?:stages\.\d+|mid)\.)(?:(?:blocks|attentions)\.)?\d+\.(?:conv2|proj)\.(weight|bias)")
# the lgq backbone's attention, which is the last of its stage's blocks
ATTENTION = re.compile(r"(.*\.stages\.\d+\.)(\d+)(\.(?:norm|q|k|v|proj)\..*)")


def _decoder_stages(names: Iterable[str]) -> int:
    return len({match[2] for name in names if (match := DECODER_STAGE.match(name)) and match[1].endswith("stages.")})


def take_over(network: nn.Module, tensors: dict[str, Tensor], where: str) -> str:
    """Copies the tensors that have the same name and shape in `network`; returns how many, as a sentence.

    Stages of the decoder are counted from the picture, as those of the encoder are, so that a network with one more
    halving takes over both halves of one with fewer. Blocks that a stage has beyond those taken over begin as the
    identity (their last convolution is zero), so that a deeper network begins as the shallower one.

    Raises:
        ValueError: where not one tensor fits.
    """
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    shift = _decoder_stages(shapes) - _decoder_stages(tensors)
    tensors = {DECODER_STAGE.sub(lambda m: f"{m[1]}{int(m[2]) + shift}", name): one for name, one in tensors.items()}
    last = {match[1]: match[2] for name in shapes if (match := ATTENTION.fullmatch(name))}
    tensors = {
        ATTENTION.sub(lambda m: f"{m[1]}{last.get(m[1], m[2])}{m[3]}", name): one for name, one in tensors.items()
    }
    fitting = {name: tensor for name, tensor in tensors.items() if tensor.shape == shapes.get(name)}
    if not fitting:
        raise ValueError(f"no tensor of {where} has the name and shape of one of this network's")
    stages = {match[1] for name in fitting if (match := BLOCK_END.fullmatch(name))}
    ends = [match for name in shapes.keys() - tensors.keys() if (match := BLOCK_END.fullmatch(name))]
    zeros = {match[0]: torch.zeros(shapes[match[0]]) for match in ends if match[1] in stages}
    network.load_state_dict({**fitting, **zeros}, strict=False)
    blocks = sum(name.endswith(".weight") for name in zeros)
    identities = f"; {blocks} more blocks begin as the identity" if blocks else ""
    return f"took over {len(fitting)} of {len(shapes)} tensors from {where}{identities}"


@torch.no_grad()
def check_same_tokens(model: LGQModel, source: LGQModel, pixel_values: Tensor) -> None:
    """Refuses a model that gives pictures (B, 3, H, W) other tokens than the one that it took weights over from.

    Raises:
        ValueError: where a token differs.
    """
    ours, theirs = (one.encode(pixel_values).image_tokens for one in (model, source.eval()))
    if ours.shape != theirs.shape or not torch.equal(ours, theirs):
        raise ValueError(
            "train_only=decoder keeps the tokens of start_from, and this model has others: give `model` the fields of "
            "its config.json but decoder_num_res_blocks"
        )


def check_same_pixels(processor: LGQImageProcessor, start_from: str) -> None:
    """Refuses a processor that gives a model other pixels than that of the folder or repository `start_from`, if any.

    Raises:
        ValueError: naming the field that differs and both values.
    """
    if cached_file(start_from, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False) is None:
        return
    theirs = LGQImageProcessor.from_pretrained(start_from)
    for name in ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"):
        before, now = (getattr(one, name) for one in (theirs, processor))
        if before != now:
            raise ValueError(
                f"train_only=decoder keeps the tokens of start_from, whose processor has {name}={before}, and this "
                f"run's has {now}: give `processor` its value"
            )


SMALLEST = 1e-12  # of the largest eigenvalue: below it lies rounding
LEAST_ENERGY = 1e-6  # of all energy: spread by less, an axis would need weights without bound


def is_alignable(config: LGQConfig) -> bool:
    """Whether a model has one codebook of vectors, compared by squared distance, and projections to and from it."""
    vectors = config.quantizer in ("lgq", "vq") and config.codebook_mode == "vector" and not config.learn_widths
    return vectors and config.distance in ("sq_l2", "l2") and config.code_dim is not None


def check_alignable(config: LGQConfig, field: str) -> None:
    """Refuses models that `is_alignable` is not true of, for a field of a recipe.

    Raises:
        ValueError: saying what the model has.
    """
    if not is_alignable(config):
        raise ValueError(
            f"{field} is for one codebook of vectors with model.code_dim, compared by distance sq_l2 "
            f"or l2 without widths; got quantizer={config.quantizer}, codebook_mode={config.codebook_mode}, "
            f"distance={config.distance}, code_dim={config.code_dim}, learn_widths={config.learn_widths}"
        )


def latents_and_gradients(
    model: LGQModel, pixel_values: Tensor, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Latents of pictures (B, 3, H, W) as rows (N, C), and as rows the gradient of a random sum of decoded pixels.

    The weights of that sum are independent and normal, so the gradients' second moment is the mean of J^T J over rows,
    J the derivative of all pixels by one row.
    """
    with torch.no_grad():
        latents = model.latents(pixel_values)
    latents.requires_grad_()
    decoded = model.decode_codes(latents).decoded_pixel_values
    noise = torch.randn(decoded.shape, generator=generator).to(decoded)
    (gradient,) = torch.autograd.grad((decoded * noise).sum(), latents)
    rows, slopes = (one.detach().permute(0, 2, 3, 1).flatten(0, 2).double() for one in (latents, gradient))
    return rows, slopes


def energies(latents_NC: Tensor, gradients_NC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How much each axis of the latents changes the picture.

    Args:
        latents_NC, gradients_NC: from `latents_and_gradients`.

    Returns:
        The axes' energies (C,), ascending: the expected squared change of the pixels, to first order, where the axis
        varies by its own spread; the map (C, C) from centred latents to these axes, uncorrelated and of variance 1;
        and the latents' mean (C,).

    Raises:
        ValueError: latents that are all the same, or that the decoder makes nothing of.
    """
    mean = latents_NC.mean(0)
    variances, basis = torch.linalg.eigh(torch.cov(latents_NC.T).reshape(len(mean), -1))
    spreads = variances.clamp_min(SMALLEST * variances[-1]).sqrt()
    slopes = gradients_NC @ (basis * spreads)  # by whitened axes
    found, rotation = torch.linalg.eigh(slopes.T @ slopes / len(slopes))
    if not (variances[-1] > 0 and found[-1] > 0):
        raise ValueError("latents have no axes: they are all the same, or the decoder makes nothing of them")
    return found.clamp_min(SMALLEST * found[-1]), rotation.T @ (basis / spreads).T, mean


@torch.no_grad()
def align_latents(model: LGQModel, latents_NC: Tensor, gradients_NC: Tensor, least_energy: float = 0.0) -> list[float]:
    """Changes the projections before and after the codes so that squared distance is squared error of the picture.

    Afterwards latents have mean 0, their axes are uncorrelated, and to first order the same squared distance between
    latents changes the picture by the same squared error, whichever way it points. Their variances add up to what they
    did, and what is decoded from latents is the same. The codes must be placed anew.

    Args:
        model: with `code_dim`, so that it has projections.
        latents_NC, gradients_NC: from `latents_and_gradients`, of many pictures.
        least_energy: an axis with a smaller share of all energy is spread as one with this share would be: a start for
            channels that nothing comes through, where the decoder shall learn to hear them. 1e-6 at least.

    Returns:
        Each axis' share of the energy, largest first.
    """
    found, to_axes, mean = energies(latents_NC, gradients_NC)
    spread = torch.maximum(found, max(least_energy, LEAST_ENERGY) * found.sum())
    total = torch.cov(latents_NC.T).reshape(len(mean), -1).trace()
    there = (spread * total / spread.sum()).sqrt()[:, None] * to_axes
    projections = [list(one.parameters()) for one in (model.pre_quant, model.post_quant)]  # weights and biases
    (into, into_bias), (out, out_bias) = ([weight[:, :, 0, 0].double(), bias.double()] for weight, bias in projections)
    changed = (
        (there @ into, there @ (into_bias - mean)),
        (out @ torch.linalg.inv(there), out_bias + out @ mean),
    )
    for (weight, bias), (new_weight, new_bias) in zip(projections, changed, strict=True):
        weight.copy_(new_weight[:, :, None, None])
        bias.copy_(new_bias)
    return (found / found.sum()).flip(0).tolist()
