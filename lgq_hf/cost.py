"""What work on pictures costs: time for a picture, and the peak of memory."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Clock:
    """Times work on one device, batch after batch.

    The first batch, which sets up and may compile, is left out of the time where others follow.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self._on_gpu = device, device.type == "cuda"
        self._batches: list[tuple[int, float]] = []
        self._peak = 0  # bytes on the GPU

    @contextmanager
    def around(self, pictures: int) -> Iterator[None]:
        """Times the block, which makes that many pictures, until the device has done its work."""
        if self._on_gpu:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        start = time.perf_counter()
        yield
        if self._on_gpu:
            torch.cuda.synchronize(self.device)
            self._peak = max(self._peak, torch.cuda.max_memory_allocated(self.device))
        self._batches.append((pictures, time.perf_counter() - start))

    def cost(self) -> dict[str, Any]:
        """What came out.

        Returns:
            `seconds_per_picture` and `timed_pictures`; `peak_memory_bytes`, `None` where the system does not tell, and
            as `peak_memory_of` whether that is all tensors on the GPU during this work, or the whole process since it
            began.

        Raises:
            ValueError: nothing was timed.
        """
        if not self._batches:
            raise ValueError("expected at least one batch to be timed, got none: use around() first")
        timed = self._batches[1:] or self._batches
        pictures = sum(count for count, _ in timed)
        return {
            "seconds_per_picture": sum(seconds for _, seconds in timed) / pictures,
            "timed_pictures": pictures,
            "peak_memory_bytes": self._peak if self._on_gpu else _peak_of_process(),
            "peak_memory_of": "tensors on the GPU" if self._on_gpu else "process",
        }


def _peak_of_process() -> int | None:
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


__all__ = ["Clock"]
