"""training.corpus on small real Debian packages that the tests build themselves."""

import hashlib
import json
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from training import corpus
from training.corpus import Package, build_corpus
from training.corpus_filters import (
    corner_crops,
    flatten,
    is_auxiliary_name,
    is_normal_map,
    reason_to_drop,
    sample_pixels,
    shrink,
    validation_split,
)

SHORT_SIDE = 64
TABLE = {
    "pictures-train": Package("CC0-1.0", skip="/icons/", colour_suffixes=("_n",)),
    "pictures-test": Package("GPL-2+", split="test"),
    "pictures-sizes": Package("CC-BY-4.0", one_per_folder=True),
}
needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")


def photograph(seed: int, width: int = 320, height: int = 240) -> Image.Image:
    """A smooth coloured picture, another for every seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def normal_map(width: int = 160, height: int = 160) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width] / 8.0
    vectors = np.stack([0.4 * np.sin(x), 0.4 * np.cos(y), np.ones_like(x)], axis=-1)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    return Image.fromarray(np.round(vectors * 127.5 + 127.5).astype(np.uint8))


def stamp(seed: int) -> Image.Image:
    """An RGBA disc with a picture on it and nothing around it."""
    picture = photograph(seed, 200, 200).convert("RGBA")
    y, x = np.mgrid[0:200, 0:200] - 100
    picture.putalpha(Image.fromarray(np.where(x * x + y * y < 80 * 80, 255, 0).astype(np.uint8)))
    return picture


def two_level() -> Image.Image:
    values = np.zeros((160, 160), dtype=np.uint8)
    values[40:120, 30:100] = 255
    return Image.fromarray(values)


def build_deb(folder: Path, name: str, fill: Path, version: str = "1.2-3") -> Path:
    control = fill / "DEBIAN"
    control.mkdir()
    (control / "control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: A Tester <a@example.org>\n"
        "Description: pictures for a test\n"
    )
    folder.mkdir(exist_ok=True)
    deb = folder / f"{name}_{version}_all.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", "-Znone", str(fill), str(deb)], check=True)
    return deb


def fill_train(root: Path) -> None:
    share = root / "usr/share/p"
    (share / "icons").mkdir(parents=True)
    photograph(1).save(share / "photo.png")
    photograph(1).save(share / "copy.bmp")
    photograph(1).resize((240, 180), Image.Resampling.LANCZOS).save(share / "smaller.png")
    photograph(2, 1100, 1030).save(share / "big.jpg", quality=90)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned by 90 degrees
    photograph(3).save(share / "turned.jpg", exif=turned)
    photograph(4).save(share / "road_n.png")
    photograph(5).save(share / "wall_norm.png")
    normal_map().save(share / "bumps.png")
    Image.new("RGB", (160, 160), (90, 91, 92)).save(share / "flat.png")
    two_level().save(share / "shape.png")
    photograph(6, 700, 140).save(share / "strip.png")
    photograph(7, 160, 120).save(share / "tiny.png")
    photograph(8).save(share / "broken.png")
    (share / "broken.png").write_bytes((share / "broken.png").read_bytes()[:4000])
    (share / "words.png").write_text("not a picture")
    (share / "bad.zip").write_text("not a zip file")
    Image.fromarray(np.arange(160 * 160, dtype=np.uint16).reshape(160, 160)).save(share / "deep.png")
    stamp(9).save(share / "stamp.png")
    Image.new("RGBA", (160, 160), (255, 0, 0, 3)).save(share / "ghost.png")
    photograph(10).save(share / "icons/button.png")
    (share / "readme.txt").write_text("words")
    (share / "link.png").symlink_to("photo.png")
    photograph(11).save(root / "wood.tga")
    photograph(12).save(root / "wood_gloss.tga")
    with zipfile.ZipFile(share / "pak0.pk3", "w") as archive:
        archive.write(root / "wood.tga", "textures/wood.tga")
        archive.write(root / "wood_gloss.tga", "textures/wood_gloss.tga")
        archive.writestr("../../escape.png", (share / "photo.png").read_bytes())
    (root / "wood.tga").unlink()
    (root / "wood_gloss.tga").unlink()


def fill_test(root: Path) -> None:
    share = root / "usr/share/q"
    share.mkdir(parents=True)
    photograph(4).resize((200, 150), Image.Resampling.LANCZOS).save(share / "small-road.png")
    photograph(20).save(share / "own.webp", lossless=True)


def fill_sizes(root: Path) -> None:
    folder = root / "usr/share/wallpapers/Hill"
    folder.mkdir(parents=True)
    for name, width, height in (("small", 200, 150), ("large", 400, 250), ("tall", 150, 300)):
        photograph(30, width, height).save(folder / f"{name}.jpg")


@pytest.fixture(scope="module")
def debs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    for name, fill in (("train", fill_train), ("test", fill_test), ("sizes", fill_sizes)):
        root = folder / name
        root.mkdir()
        fill(root)
        build_deb(folder / "debs", f"pictures-{name}", root)
    return folder / "debs"


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def build(output: Path, debs: Path, packages: list[str] | None = None, workers: int = 1, seed: int = 0) -> None:
    build_corpus(output, packages, debs, SHORT_SIDE, workers, seed, TABLE)


@pytest.fixture(scope="module")
def built(debs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("corpus")
    build(output, debs)
    return output


@needs_dpkg
def test_keeps_and_drops_exactly(built: Path) -> None:
    lost = rows(built / "dropped.jsonl")
    dropped = {f"{row['package'][9:]}:{Path(row['name']).name}": row["reason"] for row in lost}
    assert dropped == {
        "sizes:small.jpg": "another size of a kept picture",
        "sizes:tall.jpg": "another size of a kept picture",
        "train:bad.zip": "unreadable: UnidentifiedImageError",
        "train:broken.png": "unreadable: OSError",
        "train:bumps.png": "normal map by content",
        "train:button.png": "ruled out by folder or name",
        "train:deep.png": "not 8 bits a channel",
        "train:escape.png": "exact duplicate",
        "train:flat.png": "near-constant",
        "train:ghost.png": "almost transparent",
        "train:photo.png": "exact duplicate",
        "train:road_n.png": "near duplicate",  # shown by a smaller picture of the test package
        "train:shape.png": "mask or few colours",
        "train:smaller.png": "near duplicate",
        "train:strip.png": "aspect ratio > 4",
        "train:tiny.png": "shorter side < 128 px",
        "train:wall_norm.png": "normal, gloss or other map by name",
        "train:wood_gloss.tga": "normal, gloss or other map by name",
        "train:words.png": "unreadable: UnidentifiedImageError",
    }
    kept = [(row["name"], row["source_width"], row["source_height"]) for row in rows(built / "manifest.jsonl")]
    assert sorted(kept) == [
        *[("usr/share/p/big.jpg", 1100, 1030)] * 5,  # the whole picture and four crops
        ("usr/share/p/copy.bmp", 320, 240),
        ("usr/share/p/pak0.pk3/textures/wood.tga", 320, 240),
        ("usr/share/p/stamp.png", 200, 200),
        ("usr/share/p/turned.jpg", 240, 320),
        ("usr/share/q/own.webp", 320, 240),
        ("usr/share/q/small-road.png", 200, 150),
        ("usr/share/wallpapers/Hill/large.jpg", 400, 250),
    ]


@needs_dpkg
def test_manifest_names_files_that_exist_and_no_others(built: Path) -> None:
    manifest = rows(built / "manifest.jsonl")
    assert [row["file"] for row in manifest] == sorted(row["file"] for row in manifest)
    assert {str(p.relative_to(built)) for p in built.rglob("images/**/*.png")} == {row["file"] for row in manifest}
    for row in manifest:
        with Image.open(built / row["file"]) as picture:
            assert (picture.mode, picture.size) == ("RGB", (row["width"], row["height"]))
            assert min(picture.size) == SHORT_SIDE
        assert row["package_version"] == "1.2-3"
        assert row["licence"] == TABLE[row["package"]].licence
        assert row["file"].startswith(f"images/{row['split']}/{row['package']}/{row['source_sha256'][:16]}")


@needs_dpkg
def test_splits_follow_package_and_source(built: Path) -> None:
    for row in rows(built / "manifest.jsonl"):
        if row["package"] == "pictures-test":
            assert row["split"] == "test"
        else:
            assert row["split"] == ("validation" if validation_split(row["source_sha256"], 0) else "train")


@needs_dpkg
def test_summary_counts_what_the_manifests_hold(built: Path) -> None:
    summary = json.loads((built / "summary.json").read_text())
    assert (summary["total_files"], summary["total_sources"]) == (12, 8)
    assert summary["packages"]["pictures-test"] == {"files": {"test": 2}, "sources": {"test": 2}, "dropped": {}}
    assert summary["dropped"]["exact duplicate"] == 2
    assert summary["options"] == {
        "version": corpus.VERSION, "short_side": SHORT_SIDE, "seed": 0, "packages": sorted(TABLE)
    }  # fmt: skip


@needs_dpkg
def test_another_run_gives_the_same_bytes(built: Path, debs: Path, tmp_path: Path) -> None:
    build(tmp_path / "again", debs, workers=2)
    for name in ("manifest.jsonl", "dropped.jsonl", "summary.json"):
        assert (tmp_path / "again" / name).read_bytes() == (built / name).read_bytes()
    for row in rows(built / "manifest.jsonl"):
        assert (tmp_path / "again" / row["file"]).read_bytes() == (built / row["file"]).read_bytes()


@needs_dpkg
def test_goes_on_where_it_stopped(built: Path, debs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "corpus"
    shutil.copytree(built, output)
    (output / "manifest.jsonl").unlink()
    (output / "parts/pictures-test.json").unlink()  # as if stopped within this package
    left = output / "images/test/pictures-test/half.png"
    left.write_bytes(b"left over")
    made: list[str] = []
    real = corpus.build_part

    def noted(name: str, *rest: Any) -> None:
        made.append(name)
        real(name, *rest)

    monkeypatch.setattr(corpus, "build_part", noted)
    build(output, debs)
    assert made == ["pictures-test"]
    assert not left.exists()
    assert (output / "manifest.jsonl").read_bytes() == (built / "manifest.jsonl").read_bytes()
    build(output, debs)
    assert made == ["pictures-test"]


@needs_dpkg
def test_makes_removed_pictures_again(built: Path, debs: Path, tmp_path: Path) -> None:
    output = tmp_path / "corpus"
    shutil.copytree(built, output)
    row = rows(built / "manifest.jsonl")[0]
    (output / row["file"]).unlink()
    build(output, debs)
    assert (output / row["file"]).read_bytes() == (built / row["file"]).read_bytes()
    assert (output / "manifest.jsonl").read_bytes() == (built / "manifest.jsonl").read_bytes()


@needs_dpkg
def test_refuses_a_folder_made_otherwise(built: Path, debs: Path) -> None:
    with pytest.raises(ValueError, match="was made with .*'seed': 0.*choose another --output"):
        build(built, debs, seed=1)
    with pytest.raises(ValueError, match="already holds pictures-sizes, pictures-train: name them in --packages too"):
        build(built, debs, packages=["pictures-test"])


@needs_dpkg
def test_refuses_two_versions_and_broken_packages(debs: Path, tmp_path: Path) -> None:
    shutil.copy(debs / "pictures-test_1.2-3_all.deb", tmp_path / "pictures-test_1_all.deb")
    shutil.copy(debs / "pictures-test_1.2-3_all.deb", tmp_path / "pictures-test_2_all.deb")
    with pytest.raises(ValueError, match="expected one pictures-test_.*keep one of them"):
        build(tmp_path / "out", tmp_path, packages=["pictures-test"])
    (tmp_path / "pictures-train_1_all.deb").write_bytes(b"cut short")
    with pytest.raises(RuntimeError, match="could not unpack pictures-train_1_all.deb"):
        build(tmp_path / "out", tmp_path, packages=["pictures-train"])


def test_names_the_known_packages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"unknown packages \['kittens'\]: expected some of gnome-backgrounds, "):
        build_corpus(tmp_path, ["kittens"])
    with pytest.raises(SystemExit) as stopped:
        corpus.main(["--output", str(tmp_path), "--packages", "kittens"])
    assert stopped.value.code == 2
    assert "error: unknown packages ['kittens']" in capsys.readouterr().err


def test_refuses_impossible_sizes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected short_side >= 32 and workers >= 1, got 8 and 2"):
        build_corpus(tmp_path, short_side=8)


def test_says_which_tool_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda command: None)
    with pytest.raises(RuntimeError, match="apt-get is needed to download ukui.*Debian or Ubuntu, or pass --debs"):
        build_corpus(tmp_path, ["ukui-wallpapers"])
    (tmp_path / "debs/ukui-wallpapers_1_all.deb").write_bytes(b"")
    with pytest.raises(RuntimeError, match="dpkg-deb is needed to unpack .* run this on Debian or Ubuntu$"):
        build_corpus(tmp_path, ["ukui-wallpapers"])


@pytest.mark.parametrize(
    "suffix", ["_norm", "_nm", "_n", "_bump", "-gloss", "_spec", "_height", "_local", "_mask", "_glow", ".shadow"]
)
def test_map_names(suffix: str) -> None:
    stem = f"wall{suffix}"
    assert is_auxiliary_name(f"textures/{stem}.tga")
    assert is_auxiliary_name(f"textures/{stem.upper()}_2.TGA")


@pytest.mark.parametrize("name", ["mask.png", "enormous.jpg", "wall_main.tga", "specs/wall.png", "wall_n_red.png"])
def test_ordinary_names(name: str) -> None:
    assert not is_auxiliary_name(name)


def test_a_package_may_use_a_suffix_for_pictures() -> None:
    assert is_auxiliary_name("tree_n.png")
    assert not is_auxiliary_name("tree_n.png", ("_n",))
    assert is_auxiliary_name("tree_norm.png", ("_n",))


def test_blue_photographs_are_not_normal_maps() -> None:
    assert is_normal_map(sample_pixels(normal_map()))
    sky = np.asarray(photograph(1)).astype(np.float64) * [0.4, 0.5, 0.3] + [60, 90, 175]
    assert not is_normal_map(sample_pixels(Image.fromarray(sky.astype(np.uint8))))


def test_diagrams_are_not_photographs() -> None:
    diagram = Image.new("RGB", (300, 300), "white")
    diagram.paste(photograph(1, 200, 200), (50, 50))
    assert reason_to_drop(sample_pixels(diagram)) == ""
    assert reason_to_drop(sample_pixels(diagram), photographs_only=True) == "not a photograph"
    assert reason_to_drop(sample_pixels(photograph(1)), photographs_only=True) == ""
    dot = Image.new("RGB", (300, 300), "white")
    dot.paste(photograph(1, 80, 80), (50, 50))
    assert reason_to_drop(sample_pixels(dot)) == "one colour nearly everywhere"


def test_transparency_gets_one_of_two_grounds() -> None:
    digests = [hashlib.sha256(bytes([i])).hexdigest() for i in range(40)]
    corners = {flatten(stamp(1), digest, 0).getpixel((0, 0)) for digest in digests}
    assert corners == {(128, 128, 128), (255, 255, 255)}
    centre = stamp(1).convert("RGB").getpixel((100, 100))
    assert flatten(stamp(1), digests[0], 0).getpixel((100, 100)) == centre


def test_two_percent_are_for_validation_and_the_seed_chooses_which() -> None:
    digests = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(5000)]
    chosen = [{d for d in digests if validation_split(d, seed)} for seed in (0, 1)]
    assert all(70 <= len(c) <= 130 for c in chosen)
    assert chosen[0] != chosen[1]


def test_shrinks_and_never_enlarges() -> None:
    assert shrink(photograph(1, 320, 240), 64).size == (85, 64)
    assert shrink(photograph(1, 50, 40), 64).size == (50, 40)


def test_corner_crops_are_squares_without_the_flat_ones() -> None:
    picture = photograph(1, 1200, 1100)
    assert [crop.size for crop in corner_crops(picture, 64)] == [(64, 64)] * 4
    picture.paste((200, 200, 200), (0, 0, 600, 550))
    assert len(corner_crops(picture, 64)) == 3
