"""The same files, made by actors of Ray: for clusters whose scheduler is Ray."""

from collections.abc import Callable
from typing import Any

from lgq_hf.tokens.engine import FileMaker, Job, Progress
from lgq_hf.tokens.manifest import Manifest, finish
from lgq_hf.tokens.plan import Footer, Shard
from lgq_hf.tokens.shards import Folder


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
        cpus_per_worker: cores that Ray reserves for each.
        gpus_per_worker: the same for GPUs; 0: encode on CPUs.
        num_workers: processes that read ahead in each actor, beside what Ray reserves.
        started, progress: as in `tokenize`; progress comes file by file.

    Raises:
        ModuleNotFoundError: without Ray, naming the extra.
        ValueError: numbers out of range, or more than the cluster has; others as `tokenize`.
        OSError: other errors of a worker, in one line.
    """
    try:
        import ray
        import ray.util
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the engine 'ray' is the package ray: pip install '.[ray]' in a checkout of lgq_hf"
        ) from error
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
        for kind, share in (("CPU", cpus_per_worker), ("GPU", gpus_per_worker)):
            if (have := ray.cluster_resources().get(kind, 0)) < workers * share:  # Ray would wait for more for ever
                raise ValueError(f"{workers} workers of {share:g} {kind}s, but the cluster has {have:g}")
        needs: dict[str, Any] = {"num_cpus": cpus_per_worker, "num_gpus": gpus_per_worker}
        actor: Any = ray.remote(**needs, max_restarts=3, max_task_retries=3)(FileMaker)
        device = "cuda" if gpus_per_worker else "cpu"
        pool = ray.util.ActorPool([actor.remote(job, device, num_workers) for _ in range(workers)])
        try:
            for files in pool.map_unordered(lambda one, number: one.make.remote([number]), missing):
                ((footer, shard),) = files
                footers[shard.file], made[shard.file] = footer, shard
                progress(footer.pictures)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None  # without the pages that Ray puts around it
        except ray.exceptions.RayError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise OSError(f"a worker of Ray failed: {lines[-1] if lines else type(error).__name__}") from error
    return finish(job.plan, Folder(job.output), footers, made)


__all__ = ["tokenize_with_ray"]
