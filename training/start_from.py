"""What a run takes over from another model at its beginning, and whether that keeps the model's tokens."""

import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers.utils import cached_file

from lgq_hf import LGQImageProcessor, LGQModel

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
