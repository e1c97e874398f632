"""Block sizes of the kernels, from what a device holds. README.md here explains the choices."""

from typing import NamedTuple

# (rows of the block that stays, rows of the tiles that stream past, pipeline stages), the best first
_BLOCKS = ((128, 64, 2), (64, 64, 2), (64, 32, 2), (32, 32, 2), (32, 32, 1), (16, 32, 1), (16, 16, 1))
_SMALLEST = _BLOCKS[-1]


class Limits(NamedTuple):
    """Of a device: bytes of shared memory a block may have, multiprocessors, compute capability 9.0 or higher."""

    shared_bytes: int
    processors: int
    hopper: bool


def shared_bytes(
    resident: int, streamed: int, channels_padded: int, parts: int, block: tuple[int, int, int] = _SMALLEST
) -> int:
    """Shared memory of a kernel whose `resident` operands stay while tiles of `streamed` operands pass by."""
    stay, stream, stages = block
    operands = parts * channels_padded * 2 * (resident * stay + streamed * stream * stages)
    return operands + stream * channels_padded * 2 + 1024  # changes of layout and reductions


def choose_blocks(
    resident: int, streamed: int, count: int, channels_padded: int, parts: int, limits: Limits
) -> tuple[int, int, int, int]:
    """Block that stays, block that streams, stages and warps: the first of the table that fits the device.

    It must fit the shared memory and the registers, and blocks of 128 of the `count` rows must occupy all processors.
    """
    # elements of an accumulator; with 8 warps 16 or 32 registers of each thread, and kernels hold several
    accumulator = 8192 if limits.hopper else 4096
    for block in _BLOCKS:
        stay, stream, stages = block
        fits = shared_bytes(resident, streamed, channels_padded, parts, block) <= limits.shared_bytes
        if fits and stay * channels_padded <= accumulator and (stay <= 64 or count >= stay * limits.processors):
            break
    return stay, stream, stages, 8 if stay * max(channels_padded, stream) > 4096 else 4
