from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lgq_hf.images.sources import open_source
from lgq_hf.tokens.engine import Job, tokenize
from lgq_hf.tokens.manifest import verify
from lgq_hf.tokens.ray_engine import tokenize_with_ray

ray = pytest.importorskip("ray", reason="pip install '.[ray]' in a checkout of lgq_hf")


@pytest.fixture
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.mark.slow
def test_two_actors_write_the_same_bytes(
    cluster: None, job: Callable[..., Job], tmp_path: Path, digests: Callable[[Any], dict[str, str]]
) -> None:
    made = job(tmp_path / "ray")
    counted: list[int] = []
    manifest = tokenize_with_ray(made, workers=2, started=counted.append, progress=counted.append)
    assert counted[0] == sum(counted[1:]) == 11
    tokenize(job(tmp_path / "local"))
    assert digests(made.output) == digests(tmp_path / "local")
    assert manifest == verify(made.output)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"nothing")
    stopped = job(tmp_path / "stopped", source=open_source(str(tmp_path / "bad")), on_error="stop")
    with pytest.raises(ValueError, match=r"^a\.jpg: not an image .*--on-error skip"):
        tokenize_with_ray(stopped, cpus_per_worker=0.5)
    with pytest.raises(ValueError, match="1 workers of 1 GPUs, but the cluster has 0"):
        tokenize_with_ray(stopped, gpus_per_worker=1)
    Path(made.output, "data", "train-00002-of-00004.parquet").unlink()
    tokenize_with_ray(made, started=counted.append)
    assert counted[-1] == 3
    assert digests(made.output) == digests(tmp_path / "local")


def test_what_is_refused(job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="workers=0"):
        tokenize_with_ray(job(), workers=0)
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"\.\[ray\]"):
        tokenize_with_ray(job())
