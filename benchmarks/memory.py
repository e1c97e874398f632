"""Peak memory of a call, limits on memory, and telling a lack of memory from other errors."""

import ctypes
import gc
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_MIB = 2**20
_LACK = ("can't allocate memory", "cannot allocate memory", "bad_alloc", "out of memory", "not enough memory")


def _status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def available_bytes() -> int:
    """Memory that the machine could give to a new process."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no MemAvailable: give --memory-gib")


def limit_memory(extra_bytes: int) -> None:
    """Lets this process grow by `extra_bytes` of address space; what asks for more gets an error, not the machine."""
    limit = _status("VmSize") + extra_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory ran out, on the CPU (torch raises a plain RuntimeError) or a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in _LACK)


def trim(device: str) -> None:
    """Gives memory that is not in use back to the machine."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        return
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:  # only the GNU library has it; another keeps what it keeps
        malloc_trim(0)


def reset_peak(device: str) -> bool:
    """Sets the peak of this process to what it holds now; whether that is permitted."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM becomes VmRSS
    except OSError:
        return False
    return True


def method(device: str) -> str:
    """How [`peak_mib`] measures here."""
    if device == "cuda":
        return "torch.cuda.max_memory_allocated of a call, above what the inputs take"
    if reset_peak(device):
        return "peak resident set of the second call (VmHWM, reset before it), above that with the inputs"
    return "growth of ru_maxrss in the first call, compilation included"


def resident_peak_mib() -> float:
    """MiB of this process's largest resident set since [`reset_peak`]."""
    return _status("VmHWM") / _MIB


def peak_mib(call: Callable[[], Any], device: str) -> float:
    """MiB by which memory grows at most while `call` runs, what it returns included."""
    trim(device)
    if device == "cuda":
        torch.cuda.synchronize()
    counts = reset_peak(device)
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        after = torch.cuda.max_memory_allocated()
    elif counts:
        before = _status("VmRSS")
        call()
        after = _status("VmHWM")
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        call()
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return max(0, after - before) / _MIB
