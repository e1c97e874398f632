"""The two gloo processes of test_quantizers.py: each runs quantizers on its half of the batch."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from lgq_hf import LGQConfig, LGQModel


def run(folder: Path, rank: int, name: str) -> None:
    inputs = torch.load(folder / f"{name}.pt", weights_only=True)
    quantizer = LGQModel(LGQConfig(**json.loads((folder / f"{name}.json").read_text()))).quantizer.train()
    quantizer.load_state_dict(inputs["state"])
    latents = inputs["latents"].chunk(2)[rank].clone().requires_grad_()
    result = quantizer(latents)
    result.loss.backward()
    tensors = {"loss": result.loss.detach(), "grad_latents": latents.grad}
    tensors |= {f"grad.{name}": tensor.grad for name, tensor in quantizer.named_parameters() if tensor.requires_grad}
    quantizer.observe(latents.detach(), result.image_tokens)
    quantizer.end_step(torch.tensor(False))
    tensors |= {f"state.{name}": tensor for name, tensor in quantizer.state_dict().items()}
    tensors |= {f"statistic.{statistic}": value for statistic, value in result.statistics.items()}
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / f"{name}.{rank}.safetensors")


def main(folder: Path, rank: int, names: list[str]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    for name in names:
        run(folder, rank, name)
    dist.destroy_process_group()


if __name__ == "__main__":
    child = os.fork()  # what is imported above takes seconds, once
    main(Path(sys.argv[1]), int(child == 0), sys.argv[2:])
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
