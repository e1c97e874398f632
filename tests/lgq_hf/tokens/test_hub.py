import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lgq_hf.tokens.engine import Job, tokenize
from tests.hub_server import serve

_SCRIPT = """
import sys
import datasets
from lgq_hf.cli.main import main
from lgq_hf.tokens import TokenStream, verify

pictures, model = sys.argv[1:]
words = ["tokenize", pictures, "--model", model, "--size", "64", "--batch-size", "4", "--pictures-per-file", "3", "-o"]
assert main([*words, "hf://datasets/org/none"]) == 2
for share in (["--num-shards", "2", "--shard-index", "1"], ["--num-shards", "2", "--shard-index", "0"], []):
    assert main([*words, "hf://datasets/org/tokens", *share]) == 0
rows = datasets.load_dataset("org/tokens", split="train")
streamed = list(datasets.load_dataset("org/tokens", split="train", streaming=True))
ours = list(TokenStream("hf://datasets/org/tokens", shuffle_buffer=0))
assert rows["id"] == [row["id"] for row in streamed] == [row["id"] for row in ours] and len(ours) == 11
assert rows["image_tokens"] == [row["image_tokens"].tolist() for row in ours]
assert verify("hf://datasets/org/tokens")["counts"]["rows"] == 11
"""


@pytest.mark.slow
def test_shards_arrive_on_the_hub_one_commit_each(
    pictures: Path,
    model_folder: Path,
    job: Callable[..., Job],
    tmp_path: Path,
    digests: Callable[[Any], dict[str, str]],
) -> None:
    """With the real client, in a process of its own: it reads its settings when it is imported."""
    with serve("datasets/org/tokens") as hub:
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_test"}
        run = subprocess.run(
            [sys.executable, "-c", _SCRIPT, str(pictures), str(model_folder)],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, **settings, "OMP_NUM_THREADS": "1"},
        )
        assert run.returncode == 0, run.stderr
        assert "no repository at hf://datasets/org/none, or none that your token may see: make one" in run.stderr
        names = [f"data/train-{number:05d}-of-00004.parquet" for number in (1, 3, 0, 2)]
        tokens = hub.repositories["datasets/org/tokens"]
        assert tokens.commits == [[name] for name in [*names, "manifest.json"]]
        for name, content in tokens.files.items():
            (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "copy" / name).write_bytes(content)
    made = job(tmp_path / "local")
    made = replace(made, plan=replace(made.plan, tokenizer=replace(made.plan.tokenizer, name=str(model_folder))))
    tokenize(made)
    assert digests(tmp_path / "copy") == digests(tmp_path / "local")
