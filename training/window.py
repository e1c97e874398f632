"""What is measured of the steps between two rows of the log: sums on the device, which nobody waits for until then."""

import torch
from accelerate import Accelerator
from torch import Tensor

from lgq_hf.metrics.codebook import count_tokens


class Window:
    """Sums over steps, and what was measured at one step alone (`last`)."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self.counts: dict[str, int] = {}
        self.sums: dict[str, Tensor] = {}
        self.last: dict[str, Tensor] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Adds one step's 0-dim values; a name may be missing in some steps, and its mean is over the others."""
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over steps and processes; begins anew."""
        means = {name: total / self.counts[name] for name, total in self.sums.items()} | self.last
        names = sorted(means)
        values = accelerator.reduce(torch.stack([means[name].float() for name in names]), reduction="mean")
        self._start()
        return dict(zip(names, values.tolist(), strict=True))


class TokenCounts:
    """How often each of `codebook_size` tokens was used in these steps."""

    def __init__(self, codebook_size: int, device: torch.device) -> None:
        self.codebook_size = codebook_size
        self.counts = torch.zeros(codebook_size, dtype=torch.int64, device=device)

    def count(self, image_tokens: Tensor) -> None:
        """Counts tokens of any shape."""
        self.counts += count_tokens(image_tokens, self.codebook_size)

    def take(self, accelerator: Accelerator) -> Tensor:
        """The counts (K,) int64 summed over processes; begins anew."""
        counts = accelerator.reduce(self.counts, reduction="sum")
        self.counts = torch.zeros_like(self.counts)
        return counts
