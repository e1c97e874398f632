"""What is kept of each batch, and how it adds up over batches and ranks.

Numbers of single views are kept and gathered in the order of the views; everything else is a sum in float64 or of
integers. So a result depends on the number of ranks by the rounding of float64 sums alone.

Shapes: n views, B views with those that fill up a batch, H W pixels (padded), a b pixels of a view, h w grid, N latent
vectors of C channels, D features, K codes, G tokens for each position."""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lgq_hf.checkpoint.loading import Checkpoint
from lgq_hf.evaluation.pictures import Batch
from lgq_hf.evaluation.settings import Classifier, Networks, Settings
from lgq_hf.metrics.agreement import top1_agreement
from lgq_hf.metrics.code_distances import CodeDistances
from lgq_hf.metrics.codebook import count_tokens
from lgq_hf.metrics.frechet import FeatureStatistics
from lgq_hf.metrics.reconstruction import psnr, ssim
from lgq_hf.runtime import Clock, world
from lgq_hf.tokenizer.configuration_lgq import LGQConfig
from lgq_hf.tokens.encoding import Encoder, Encoding

Value = TypeVar("Value")
_PATIENCE = timedelta(hours=2)  # how long the first to finish waits for the last
# CPU tensors and objects travel by the first, tensors on a GPU by the second
_BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}


@dataclass(frozen=True)
class Processes:
    """Number of processes, number of this one, and what they talk by (`None` where there is one)."""

    count: int = 1
    rank: int = 0
    backend: str | None = None

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors, of any one shape and dtype; in place."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def gathered(self, value: Value) -> list[Value]:
        """The values of all processes in the order of their numbers; they are pickled."""
        values: list[Any] = [value]
        if self.count > 1:
            values = [None] * self.count
            dist.all_gather_object(values, value)
        return values

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What rank 0 makes, or the error that it meets, in all of them; the others wait."""
        values: list[Any] = [None]
        with self.together():
            if self.rank == 0:
                values = [make()]
        if self.count > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that all ranks leave together: an error of any kind in one of them ends all.

        Raises:
            Exception: what this rank raised; in the others a ValueError or RuntimeError that names the rank.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as own:  # raised below, after the others know
            error = own
        told = self.gathered(None if error is None else (isinstance(error, ValueError), str(error) or repr(error)))
        if error is not None:
            raise error
        for rank, one in enumerate(told):
            if one is not None:
                raise (ValueError if one[0] else RuntimeError)(f"rank {rank}: {one[1]}")


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """The processes that torchrun or accelerate launch started, or that the caller joined by torch.distributed.

    Args:
        device: of this process's model. On a CPU they talk by gloo, on GPUs by nccl.

    Raises:
        ValueError: RANK and WORLD_SIZE contradict each other, or the launcher did not say where processes meet.
    """
    if dist.is_available() and dist.is_initialized():
        yield Processes(dist.get_world_size(), dist.get_rank(), str(dist.get_backend()))
        return
    rank, count = world()
    if count == 1:
        yield Processes()
        return
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ValueError(
            f"WORLD_SIZE={count}, but {' and '.join(missing)} not set: start the processes by torchrun or accelerate "
            "launch, or take WORLD_SIZE out of the environment"
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = _BACKENDS[device.type]
    dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield Processes(count, rank, backend)
    finally:
        dist.destroy_process_group()


@dataclass(frozen=True)
class Reconstructed:
    """What became of a batch; the first n of B rows are its views, the others fill it up.

    Attributes:
        numbers: n, of the views.
        originals: (B,3,a,b) uint8.
        pictures: (B,3,a,b) uint8, clamped to the range of a picture and rounded.
        image_tokens: (n,h,w) or (n,h,w,G) int64.
        latents_NC: of all n h w positions (N,C) fp32, as the lookup compares them with codes.
        codes_NC: (N,C) fp32.
    """

    numbers: list[int]
    originals: Tensor
    pictures: Tensor
    image_tokens: Tensor
    latents_NC: Tensor
    codes_NC: Tensor


class Reconstructor:
    """A checkpoint's encoder, lookup and decoder, for batches of bytes.

    Args:
        checkpoint: the model; in evaluation mode, of any dtype.
        settings: how pictures are batched.
    """

    def __init__(self, checkpoint: Checkpoint, settings: Settings) -> None:
        self.model, self.processor, self.device = checkpoint.model.eval(), checkpoint.processor, checkpoint.device
        self._fill_to = settings.batch_size if settings.preprocessing.size is not None else 1
        self._encoder = Encoder(checkpoint, Encoding(settings.batch_size))
        self.clock = Clock(self.device)

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Reconstructed:
        """Encodes and decodes; `clock` measures that alone, with the views that fill up the batch."""
        count = len(batch.pixels)
        pixels = batch.pixels.to(self.device, non_blocking=True)
        if count < self._fill_to:
            pixels = torch.cat([pixels, pixels[-1:].expand(self._fill_to - count, -1, -1, -1)])
        with self.clock.around(len(pixels)):
            encoded = self.model.encode(self._encoder.pixel_values(pixels))
            decoded = self.model.decode_codes(encoded.quantized_last_hidden_state).decoded_pixel_values
        height, width = batch.size
        pictures = self.processor.postprocess(decoded, [batch.size] * len(pixels), output_type="pt")
        quantizer = self.model.quantizer
        latents, codes = encoded.last_hidden_state[:count], encoded.quantized_last_hidden_state[:count]
        return Reconstructed(
            batch.numbers,
            pixels[:, :, :height, :width],
            (torch.stack(pictures) * 255).round().to(torch.uint8),
            encoded.image_tokens[:count],
            quantizer.comparable(quantizer.to_rows(latents)),
            quantizer.comparable_codes(quantizer.to_rows(codes)),
        )


# distances are counted in bins that are 1/64 of a doubling wide, between 2^-64 and 2^64
_PER_DOUBLING, _LOWEST, _HIGHEST = 64, -64, 64


class Totals:
    """Sums of an evaluation, on the device of the model.

    Args:
        networks: what measures.
        config: of the tokenizer.
        device: where it is.

    Attributes:
        rows: of each view, by name: its number as "view", "psnr", "ssim", and what the networks say.
        counts_GK: (G,K) int64, how often each code occurred at each of the G tokens of a position.
        originals, reconstructions: statistics of the features.
        distances: of latents and codes, for each of the G parts of a latent vector.
        lengths: (bins,) int64, how many whole latent vectors lie how far from their code, see `median_length`.
        length_sum: () float64, the sum of those distances.
        sizes: how many views there are of each height and width in pixels.
        positions: of all token grids.
        failures: pictures that were passed over: id and reason.
    """

    def __init__(self, networks: Networks, config: LGQConfig, device: torch.device) -> None:
        self.networks = networks
        self.rows: list[dict[str, float]] = []
        groups, codes = config.tokens_per_position, config.codebook_size
        self.counts_GK = torch.zeros(groups, codes, dtype=torch.int64, device=device)
        features = networks.extractor.dimensions
        self.originals, self.reconstructions = (FeatureStatistics(features, device=device) for _ in range(2))
        channels = config.quantizer_dim // groups
        self.distances = [CodeDistances(codes, channels, device=device) for _ in range(groups)]
        self.lengths = torch.zeros((_HIGHEST - _LOWEST) * _PER_DOUBLING + 2, dtype=torch.int64, device=device)
        self.length_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.positions = 0
        self.failures: list[dict[str, str]] = []

    @torch.inference_mode()
    def add(self, batch: Reconstructed) -> None:
        """Measures a batch.

        Raises:
            ValueError: NaN or infinities from a network.
        """
        count = len(batch.numbers)
        a, b = (pixels.float() / 255 for pixels in (batch.originals, batch.pictures))
        columns: dict[str, Tensor] = {"psnr": psnr(a[:count], b[:count]), "ssim": ssim(a[:count], b[:count])}
        for name, network in (("perceptual", self.networks.perceptual), ("lpips", self.networks.lpips)):
            if network is not None:
                columns[name] = network(a, b)[:count]
        features = [self.networks.extractor.pooled(pictures)[:count] for pictures in (a, b)]
        for statistics, some in zip((self.originals, self.reconstructions), features, strict=True):
            statistics.update(some)
        if self.networks.classifier is not None:
            logits = self._logits(self.networks.classifier, (a, b), features, count)
            columns["top1_agreement"] = top1_agreement(logits[0], logits[1])
        values = torch.stack([column.double() for column in columns.values()], dim=1).tolist()
        for number, row in zip(batch.numbers, values, strict=True):
            self.rows.append({"view": number, **dict(zip(columns, row, strict=True))})
        self.sizes[a.shape[2], a.shape[3]] += count
        self._add_codes(batch)

    def _logits(
        self, classifier: Classifier, pictures: tuple[Tensor, Tensor], features: list[Tensor], count: int
    ) -> list[Tensor]:
        """Scores of originals and reconstructions; where one network extracts and classifies, it runs once."""
        own: Any = classifier
        if own is self.networks.extractor and hasattr(own, "logits_of"):
            return [own.logits_of(some) for some in features]
        return [own.logits(some)[:count] for some in pictures]

    def _add_codes(self, batch: Reconstructed) -> None:
        groups, codes = self.counts_GK.shape
        tokens_NG = batch.image_tokens.reshape(-1, groups)
        latents_NC, codes_NC = batch.latents_NC, batch.codes_NC
        lengths = (latents_NC.double() - codes_NC.double()).norm(dim=1)
        if not bool(lengths.isfinite().all()):
            raise ValueError("the encoder made NaN or infinities: use --dtype float32, or bfloat16 for its range")
        self.positions += len(tokens_NG)
        parts = zip(
            self.distances,
            tokens_NG.unbind(1),
            latents_NC.chunk(groups, dim=1),
            codes_NC.chunk(groups, dim=1),
            strict=True,
        )
        for group, (distances, tokens_N, latents, vectors) in enumerate(parts):
            self.counts_GK[group] += count_tokens(tokens_N, codes)
            distances.update(latents, vectors, tokens_N)
        self.length_sum += lengths.sum()
        bins = ((lengths.log2() - _LOWEST) * _PER_DOUBLING).floor() + 1  # of 0: minus infinity, the lowest
        self.lengths += count_tokens(bins.clamp(0, len(self.lengths) - 1).long(), len(self.lengths))

    def reduce(self, processes: Processes) -> None:
        """Becomes the totals of all processes, in each of them."""
        for tensor in (self.counts_GK, self.lengths, self.length_sum):
            processes.total(tensor)
        self.originals, self.reconstructions = (
            FeatureStatistics.from_state(processes.total(statistics.state))
            for statistics in (self.originals, self.reconstructions)
        )
        self.distances = [
            CodeDistances.from_state(processes.total(part.state), part.codebook_size, part.dim)
            for part in self.distances
        ]
        parts = processes.gathered((self.rows, self.sizes, self.positions, self.failures))
        self.rows = sorted((row for rows, *_ in parts for row in rows), key=lambda row: row["view"])
        self.sizes = sum((sizes for _, sizes, *_ in parts), Counter())
        self.positions = sum(positions for _, _, positions, _ in parts)
        self.failures = sorted((one for *_, some in parts for one in some), key=lambda one: one["id"])


def median_length(lengths: Tensor) -> float:
    """The median of distances that were counted in bins: the middle of its bin, at most 0.6 % off; 0 for a 0.

    Args:
        lengths: (bins,) integers: zeros (below 2^-64), bins of a 64th of a doubling, and what is above 2^64; the sum
            is not 0.
    """
    upto = lengths.cumsum(0)
    bin_ = int((2 * upto < upto[-1] + (upto[-1] % 2)).sum())  # of an even number of distances the lower middle one
    if bin_ == 0:
        return 0.0
    return math.inf if bin_ == len(lengths) - 1 else 2 ** (_LOWEST + (bin_ - 0.5) / _PER_DOUBLING)


def column(rows: list[dict[str, float]], name: str) -> Tensor:
    """(n,) float64: one number of each view."""
    return torch.tensor([row[name] for row in rows], dtype=torch.float64)


def described_sizes(sizes: Counter[tuple[int, int]]) -> Any:
    """Height and width in pixels of all views, or how many different ones there are, and their range."""
    if len(sizes) == 1:
        return list(next(iter(sizes)))
    smallest, largest = (extreme(sizes, key=lambda size: size[0] * size[1]) for extreme in (min, max))
    return {"sizes": len(sizes), "smallest": list(smallest), "largest": list(largest)}
