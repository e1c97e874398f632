"""Which tensors of a training program's file are taken, and what is said of the others."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conversion.convert import make_plan
from conversion.plan import CheckpointError
from conversion.read import read_weights, weight_files
from conversion.weights import Chosen, bookkeeping, choose_entry, choose_lightning, is_state_dict, strip_wrappers

LIGHTNING = {"epoch": 3, "global_step": 7, "pytorch-lightning_version": "2.2", "callbacks": {}, "optimizer_states": []}
FILES = [
    "amused_a/checkpoint",
    "diffusers_a/checkpoint",
    "diffusers_a/checkpoint_legacy",
    "ibq_a/checkpoint.ckpt",
    "llamagen_a/checkpoint.pt",
    "llamagen_a/checkpoint_release.pt",
    "magvit2_a/checkpoint.ckpt",
    "maskgit_a/checkpoint.bin",
    "simvq_a/checkpoint.ckpt",
    "taming_a/checkpoint.ckpt",
    "wetok_a/checkpoint.ckpt",
]


def state(**more: float) -> dict[str, Tensor]:
    """Two weights, their averages, and the averages' progress."""
    values = {
        "encoder.conv_in.weight": 1.0,
        "decoder.conv_out.bias": 2.0,
        "model_ema.encoderconv_inweight": 3.0,
        "model_ema.decoderconv_outbias": 4.0,
        "model_ema.decay": 0.5,
        "model_ema.num_updates": 9.0,
    }
    return {name: torch.tensor(value) for name, value in {**values, **more}.items()}


def without(content: Mapping[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in content.items() if not name.startswith(names)}


def values(chosen: Chosen) -> dict[str, float]:
    return {name: tensor.item() for name, tensor in chosen.tensors.items()}


# Lightning


@pytest.mark.parametrize("weights", ["auto", "ema"])
def test_averages_are_taken(weights: Any) -> None:
    chosen = choose_lightning({**LIGHTNING, "state_dict": state()}, weights)
    assert values(chosen) == {"encoder.conv_in.weight": 3.0, "decoder.conv_out.bias": 4.0}
    assert chosen.weights == "ema"
    assert chosen.origin["encoder.conv_in.weight"] == "model_ema.encoderconv_inweight"
    assert chosen.dropped["encoder.conv_in.weight"] == "optimised weights: their moving average is used"
    assert chosen.dropped["model_ema.decay"] == "moving average: its progress"
    assert set(chosen.dropped) - set(state()) == set(LIGHTNING)


def test_raw_weights_by_choice_and_where_there_are_no_others() -> None:
    chosen = choose_lightning(state(), "raw")
    assert values(chosen) == {"encoder.conv_in.weight": 1.0, "decoder.conv_out.bias": 2.0}
    assert chosen.weights == "raw"
    assert chosen.dropped == dict.fromkeys(
        without(state(), "encoder", "decoder"), "moving average: the optimised weights were asked for"
    )
    alone = choose_lightning(without(state(), "model_ema"), "auto")
    assert (alone.weights, alone.dropped, values(alone)) == ("raw", {}, values(chosen))


def test_averages_that_are_not_there_are_refused() -> None:
    with pytest.raises(CheckpointError, match="--weights ema: the file has no moving averages"):
        choose_lightning(without(state(), "model_ema"), "ema")


@pytest.mark.parametrize("weights", ["auto", "ema"])
def test_a_weight_without_its_average_is_refused(weights: Any) -> None:
    lacking = without(state(), "model_ema.decoderconv_outbias")
    with pytest.raises(CheckpointError, match=r"none for decoder\.conv_out\.bias: --weights raw takes the others"):
        choose_lightning(lacking, weights)
    assert values(choose_lightning(lacking, "raw"))["decoder.conv_out.bias"] == 2.0


def test_a_frozen_weight_needs_no_average() -> None:
    lacking = without(state(), "model_ema.decoderconv_outbias")
    chosen = choose_lightning(lacking, "auto", frozenset(["decoder.conv_out.bias"]))
    assert values(chosen) == {"encoder.conv_in.weight": 3.0, "decoder.conv_out.bias": 2.0}
    assert "decoder.conv_out.bias" not in chosen.dropped and chosen.weights == "ema"


def test_an_average_of_nothing_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"average of nothing in the file: model_ema\.encodermidweight"):
        choose_lightning(state(**{"model_ema.encodermidweight": 1.0}), "auto")


def test_two_weights_do_not_share_an_average() -> None:
    with pytest.raises(CheckpointError, match=r"none for encoder\.conv_in_\.weight|none for encoder\.conv\.in"):
        choose_lightning(state(**{"encoder.conv.in.weight": 1.0, "encoder.convin.weight": 1.0}), "auto")


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_the_loss_is_left_out_with_its_averages(weights: Any) -> None:
    networks = {
        "loss.perceptual_loss.net.weight": 1.0,
        "discriminator.main.0.weight": 1.0,
        "model_ema.lossdiscriminatormain0weight": 1.0,
        "model_ema.discriminatormain0weight": 1.0,
    }
    chosen = choose_lightning(state(**networks), weights)
    assert set(chosen.tensors) == {"encoder.conv_in.weight", "decoder.conv_out.bias"}
    for name in networks:
        if weights == "ema" or not name.startswith("model_ema"):
            assert chosen.dropped[name] == "loss: discriminator and perceptual network"
    assert set(chosen.origin.values()) | set(chosen.dropped) == set(state(**networks))


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, {"state_dict": {"a": 3}}, {"state_dict": [1]}, {"a": 3}])
def test_what_holds_no_tensors_is_refused(content: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="expected a dictionary of tensors, or one under 'state_dict'"):
        choose_lightning(content, "auto")


# Wrappers and what stands beside the weights


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_are_taken_off(prefix: str) -> None:
    wrapped = {prefix + name: tensor for name, tensor in state().items()}
    chosen = choose_lightning(wrapped, "ema")
    assert values(chosen) == values(choose_lightning(state(), "ema"))
    assert chosen.origin["encoder.conv_in.weight"] == f"{prefix}model_ema.encoderconv_inweight"
    assert values(choose_entry({"model": wrapped}, "raw")).keys() == state().keys()


def test_a_prefix_that_not_all_have_is_part_of_the_name() -> None:
    names = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    assert strip_wrappers(names) == {"module.a": "module.a", "b": "b"}


def test_entries_that_no_trainer_writes_are_refused() -> None:
    assert bookkeeping({**LIGHTNING, "state_dict": {}}, {"state_dict"}).keys() == LIGHTNING.keys()
    with pytest.raises(CheckpointError, match=r"known trainers write, got generator, teacher: take the weights out"):
        bookkeeping({**LIGHTNING, "state_dict": {}, "teacher": {}, "generator": {}}, {"state_dict"})
    with pytest.raises(CheckpointError, match="got generator"):
        choose_lightning({"state_dict": state(), "generator": {}}, "auto")
    with pytest.raises(CheckpointError, match="got generator"):
        choose_entry({"model": state(), "generator": {}}, "auto")


def test_state_dicts() -> None:
    assert is_state_dict(state())
    assert not is_state_dict({}) and not is_state_dict({**state(), "epoch": 3})


# Files with entries `model` and `ema`


@pytest.mark.parametrize(
    ("weights", "entry", "left"), [("auto", "ema", "model"), ("ema", "ema", "model"), ("raw", "model", "ema")]
)
def test_entries(weights: Any, entry: str, left: str) -> None:
    content = {
        "model": {"a": torch.tensor(1.0)},
        "ema": {"a": torch.tensor(2.0)},
        "steps": 3,
        "optimizer": {},
    }
    chosen = choose_entry(content, weights)
    assert values(chosen) == {"a": content[entry]["a"].item()}
    assert chosen.origin == {"a": f"{entry}.a"} and chosen.weights == ("ema" if entry == "ema" else "raw")
    assert chosen.dropped.keys() == {left, "steps", "optimizer"}
    assert "moving average" in chosen.dropped[left]


def test_entries_that_are_not_there() -> None:
    only = {"model": {"a": torch.tensor(1.0)}}
    assert choose_entry(only, "auto").weights == "raw"
    with pytest.raises(CheckpointError, match="expected weights under 'ema', the file has model"):
        choose_entry(only, "ema")
    with pytest.raises(CheckpointError, match="expected weights under 'model', the file has generator"):
        choose_entry({"generator": only}, "auto")
    with pytest.raises(CheckpointError, match="--weights ema: the file is one state dict, without moving averages"):
        choose_entry(only["model"], "ema")
    assert choose_entry(only["model"], "auto").origin == {"a": "a"}


# All recorded files


def every_key(content: Mapping[str, Any]) -> set[str]:
    """Names of everything in a file as a plan says them."""
    if "state_dict" in content:
        return {*content, *content["state_dict"]} - {"state_dict"}
    if "ema" in content:
        return {*content, *(f"ema.{name}" for name in content["ema"])} - {"ema"}
    if "model" in content:
        return {*content, *(f"model.{name}" for name in content["model"])} - {"model"}
    return set(content)


@pytest.mark.parametrize("file", FILES)
def test_every_key_of_a_file_is_used_or_dropped_with_a_reason(file: str, family: Path) -> None:
    plan, files = make_plan(family / file)
    used = [key for source in plan.sources.values() for key in source.split(", ")]
    assert len(set(used)) == len(used) and plan.sources.keys() == plan.tensors.keys()
    assert not set(used) & set(plan.dropped)
    assert set(used) | set(plan.dropped) == every_key(read_weights(files))
    assert all(plan.dropped.values())


@pytest.mark.parametrize("file", [file for file in FILES if file.endswith(".ckpt")])
def test_tensors_are_the_files_own(file: str, family: Path) -> None:
    plan, _ = make_plan(family / file)
    content = read_weights(weight_files(family / file))["state_dict"]
    for name, tensor in plan.tensors.items():
        if name not in plan.baked:
            assert torch.equal(tensor, content[plan.sources[name]]), name
    loss = {key for key in content if key.startswith(("loss.", "model_ema.loss"))}
    assert loss and {plan.dropped[key] for key in loss} == {"loss: discriminator and perceptual network"}
