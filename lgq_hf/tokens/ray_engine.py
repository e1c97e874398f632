"""The same files, made by actors of Ray Data: for clusters whose scheduler is Ray."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from lgq_hf.tokens.engine import FileMaker, Job, Progress
from lgq_hf.tokens.manifest import Manifest, finish
from lgq_hf.tokens.plan import Footer, Shard
from lgq_hf.tokens.shards import Folder


class FileActor:
    """Makes the files whose numbers it is handed; Ray keeps one, with its model, for each of the workers."""

    def __init__(self, job: Job, device: str, num_workers: int) -> None:
        self.maker = FileMaker(job, device, num_workers)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """`batch` is {"number": one}; returns the file as a `Shard`, its images, and an error by type and text."""
        shard, pictures, kind, text = Shard("", 0, 0, ""), 0, "", ""
        try:
            ((footer, shard),) = self.maker.make([int(number) for number in batch["number"]])
            pictures = footer.pictures
        except (ValueError, OSError) as error:  # as rows, since Ray would wrap them in pages of its own
            kind, text = ("value" if isinstance(error, ValueError) else "os"), str(error)
        made = {**asdict(shard), "pictures": pictures, "kind": kind, "text": text}
        return {name: [value] for name, value in made.items()}


def tokenize_with_ray(
    job: Job,
    *,
    workers: int = 1,
    cpus_per_worker: float = 1,
    gpus_per_worker: float = 0,
    num_workers: int = 0,
    started: Callable[[int], None] = lambda pictures: None,
    progress: Progress = lambda pictures: None,
) -> Manifest:
    """As `tokenize`, by Ray actors that take one file at a time; all machines must see source and output.

    A file is whole or not there, whoever makes it; so a failed job is started again, and output is that of `tokenize`,
    byte for byte on machines that compute alike.

    Args:
        job: what is to be made.
        workers: actors.
        cpus_per_worker: cores that Ray reserves for each; on one machine leave some for Ray's own tasks, or it waits
            for ever: 0.5 with two workers on two cores.
        gpus_per_worker: the same for GPUs; 0: encode on CPUs.
        num_workers: processes that read ahead in each actor, beside what Ray reserves.
        started, progress: as in `tokenize`; progress comes file by file.

    Raises:
        ModuleNotFoundError: without Ray, naming the extra.
        ValueError: numbers out of range; others as `tokenize`.
        OSError: other errors of a worker, in one line.
    """
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the engine 'ray' is the package ray: pip install 'lgq_hf[ray]'") from error
    if workers < 1 or cpus_per_worker < 0 or gpus_per_worker < 0:
        given = f"{workers=}, {cpus_per_worker=}, {gpus_per_worker=}"
        raise ValueError(f"expected at least one worker, and no negative share of a machine, got {given}")
    footers: dict[str, Footer] = {}
    made: dict[str, Shard] = {}
    missing = job.look(footers)
    started(sum(len(job.plan.pictures_of(number)) for number in missing))
    if missing:
        if not ray.is_initialized():
            ray.init(log_to_driver=False)
        workers = min(workers, len(missing))
        have, gpus = (ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU"))
        if gpus < workers * gpus_per_worker:
            raise ValueError(f"{workers} workers of {gpus_per_worker} GPUs, but the cluster has {gpus:g}")
        if have <= workers * cpus_per_worker:
            raise ValueError(
                f"{workers} workers of {cpus_per_worker} cores take all {have:g} of the cluster, and Ray's reading "
                "tasks would wait for ever: fewer workers, or a smaller share for each"
            )
        ray.data.DataContext.get_current().enable_progress_bars = False
        files = ray.data.from_items([{"number": number} for number in missing], override_num_blocks=len(missing))
        rows = files.map_batches(
            FileActor,
            fn_constructor_args=(job, "cuda" if gpus_per_worker else "cpu", num_workers),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=cpus_per_worker,
            num_gpus=gpus_per_worker,
        )
        try:
            for row in rows.iter_rows():
                if row["kind"]:
                    raise ValueError(row["text"]) if row["kind"] == "value" else OSError(row["text"])
                made[row["file"]] = Shard(**{name: row[name] for name in Shard.__dataclass_fields__})
                progress(row["pictures"])
        except ray.exceptions.RayError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise OSError(f"a worker of Ray failed: {lines[-1] if lines else type(error).__name__}") from error
        job.look(footers)
    return finish(job.plan, Folder(job.output), footers, made)


__all__ = ["FileActor", "tokenize_with_ray"]
