from pathlib import Path

import pytest

from lgq_hf.files import atomic_file, atomic_folder


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
