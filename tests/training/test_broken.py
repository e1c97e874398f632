import json
import logging
from pathlib import Path

import pytest

from training.broken import BrokenPictures


def some(first: int, last: int) -> list[tuple[str, str]]:
    return [(f"{number}.png", "empty file") for number in range(first, last + 1)]


def listed(path: Path) -> list[str]:
    return [json.loads(line)["name"] for line in path.read_text().splitlines()]


def test_each_picture_is_listed_and_counted_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "broken.jsonl"
    broken = BrokenPictures(path, 0.0)
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            broken.add(some(1, 3), seen=16)
    broken.add([], seen=16)
    assert path.read_text().splitlines()[0] == '{"name": "1.png", "reason": "empty file"}'
    assert listed(path) == ["1.png", "2.png", "3.png"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{number}.png cannot be read: empty file" for number in (1, 2, 3)
    ]
    assert broken.state_dict() == {"seen": 96, "reasons": dict(some(1, 3))}


def test_ten_are_borne_and_then_a_share(tmp_path: Path) -> None:
    broken = BrokenPictures(tmp_path / "broken.jsonl", 0.02)
    broken.add(some(1, 10), seen=10)
    with pytest.raises(
        ValueError,
        match=r"^11 broken pictures among 11 samples: at most a share of 0\.02 is borne, and 10 always\. The last: "
        r"9\.png: empty file; 10\.png: empty file; 11\.png: empty file\. All are listed in .*broken\.jsonl: remove or",
    ):
        broken.add(some(11, 11), seen=1)
    assert len(listed(tmp_path / "broken.jsonl")) == 11
    broken.seen = 600
    broken.add(some(12, 12), seen=0)
    with pytest.raises(ValueError, match="13 broken pictures among 600 samples"):
        broken.add(some(13, 13), seen=0)
    with pytest.raises(ValueError, match=r"max_share: expected a share in \[0, 1\], got 2"):
        BrokenPictures(tmp_path / "broken.jsonl", 2)


def test_a_resumed_process_goes_on_counting(tmp_path: Path) -> None:
    first, second = (BrokenPictures(tmp_path / "broken.jsonl", 0.0) for _ in range(2))
    first.add(some(1, 9), seen=100)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    second.add(some(1, 10), seen=100)
    assert len(listed(tmp_path / "broken.jsonl")) == 10 and second.seen == 200
    with pytest.raises(ValueError, match="11 broken pictures among 300"):
        second.add(some(11, 11), seen=100)


def test_a_row_that_a_kill_cut_short_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    BrokenPictures(path, 0.0).add(some(1, 2), seen=2)
    path.write_bytes(path.read_bytes()[:-5])
    broken = BrokenPictures(path, 0.0)
    assert broken.listed() == {"1.png"}
    broken.add(some(1, 3), seen=3)
    assert listed(path) == ["1.png", "2.png", "3.png"]
