from pathlib import Path

import pytest
from huggingface_hub.errors import StrictDataclassError

from lgq_hf import LGQConfig
from lgq_hf.files import atomic_file, atomic_folder, one_line


def test_an_error_in_one_line() -> None:
    assert one_line(ValueError("two \n\n  lines.\n")) == "two lines."
    assert one_line(TimeoutError()) == "TimeoutError"
    with pytest.raises(StrictDataclassError) as caught:
        LGQConfig(codebook_size="many")  # type: ignore[arg-type]
    assert one_line(caught.value).startswith("TypeError: Field 'codebook_size' expected int")


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"
    with atomic_file(target) as temporary:
        temporary.write_text("new")
        assert not target.exists() and temporary.suffix == ".txt"
    assert target.read_text() == "new"
    with pytest.raises(RuntimeError, match="broken"), atomic_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("broken")
    assert target.read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]


def test_a_folder_replaces_the_old_one_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for content in ("one", "two"):
        with atomic_folder(target) as temporary:
            (temporary / content).write_text(content)
    assert [path.name for path in target.iterdir()] == ["two"]
    with pytest.raises(RuntimeError, match="broken"), atomic_folder(target) as temporary:
        (temporary / "three").write_text("half")
        raise RuntimeError("broken")
    assert [path.name for path in target.iterdir()] == ["two"]
    with atomic_folder(target) as temporary:  # what the failed attempt left behind is not taken over
        assert list(temporary.iterdir()) == []


def test_a_rename_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("old")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError("no space")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no space"), atomic_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "file").read_text() == "old"


@pytest.mark.parametrize("empty", [True, False])
def test_a_new_folder_takes_the_place_of_nothing_or_an_empty_one(tmp_path: Path, empty: bool) -> None:
    target = tmp_path / "out"
    if empty:
        target.mkdir()
    with pytest.raises(RuntimeError, match="broken"), atomic_folder(target, new=True) as folder:
        raise RuntimeError("broken")
    assert target.exists() == empty and not folder.exists()
    with pytest.raises(OSError, match="not empty"), atomic_folder(target, new=True) as folder:
        target.mkdir(exist_ok=True)
        (target / "mine.txt").write_text("keep")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]
    (target / "mine.txt").unlink()
    with atomic_folder(target, new=True) as folder:
        (folder / "file").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "file"]
