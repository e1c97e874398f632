"""Block sizes of the kernels, from what a device holds. README.md here explains the choices."""

# (rows of the block that stays, rows of the tiles that stream past, pipeline stages), the best first
_BLOCKS = ((128, 64, 2), (64, 64, 2), (64, 32, 2), (32, 32, 2), (32, 32, 1), (16, 32, 1), (16, 16, 1))
_SMALLEST = _BLOCKS[-1]
# Elements of an accumulator: 32 registers for each of 256 threads. Kernels hold two, and two tiles of logits.
_ACCUMULATOR = 8192


def shared_bytes(
    resident: int, streamed: int, channels_padded: int, parts: int, block: tuple[int, int, int] = _SMALLEST
) -> int:
    """Shared memory of a kernel whose `resident` operands stay while tiles of `streamed` operands pass by."""
    stay, stream, stages = block
    operands = parts * channels_padded * 2 * (resident * stay + streamed * stream * stages)
    return operands + stream * channels_padded * 2 + 1024  # changes of layout and reductions


def choose_blocks(
    resident: int,
    streamed: int,
    count: int,
    channels_padded: int,
    parts: int,
    available: int,
    processors: int,
) -> tuple[int, int, int, int]:
    """Block that stays, block that streams, stages and warps: the first of the table that fits `available` bytes of
    shared memory and the registers, and whose blocks of `count` rows keep all `processors` busy.
    """
    for block in _BLOCKS:
        stay, stream, stages = block
        fits = shared_bytes(resident, streamed, channels_padded, parts, block) <= available
        if fits and stay * channels_padded <= _ACCUMULATOR and (stay <= 64 or count >= stay * processors):
            return stay, stream, stages, 8 if stay * channels_padded > _ACCUMULATOR // 2 else 4
    return *_SMALLEST, 4
