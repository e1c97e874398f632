"""Build a corpus of freely licensed pictures from Debian packages.

    python -m training.corpus --output corpus [--packages a,b] [--debs DIR] [--short-side 288] [--workers 2] [--seed 0]

Writes OUTPUT/images/<split>/<package>/*.png (RGB), OUTPUT/manifest.jsonl (one row a picture), OUTPUT/dropped.jsonl
(one row a file that was not kept, with the reason) and OUTPUT/summary.json. The same packages and options give the
same bytes. Splits are by package (test) and by source file (validation), never by crop. A run that was stopped goes on
with the first package that has no OUTPUT/parts/<package>.json.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from training.corpus_filters import Job, Outcome, drop_duplicates, process

VERSION = 1  # raise when the same packages and options would give other pictures
SPLITS = ("train", "validation", "test")
PICTURES = {".jpg", ".jpeg", ".png", ".tga", ".webp", ".bmp", ".tif", ".tiff"}
ARCHIVES = {".pk3", ".zip"}
LARGEST_MEMBER = 512 * 2**20  # bytes; a larger archive member is no picture for us


@dataclass(frozen=True)
class Package:
    """One Debian package: whole in `split`, apart from the validation share of train packages.

    `skip` is a pattern of paths to leave out (icons, fonts, data stored as pictures); `one_per_folder` keeps the
    picture with most pixels of each folder (wallpapers in several sizes); `colour_suffixes` are name endings that mean
    a map elsewhere and ordinary pictures here.
    """

    licence: str
    split: str = "train"
    skip: str = ""
    photographs_only: bool = False
    one_per_folder: bool = False
    colour_suffixes: tuple[str, ...] = ()


OPENCV_RESULTS = (  # drawings on, and processed versions of, the same few photographs; and a withdrawn test picture
    r"(?i)lena|result|theory|axis|axes|chess|occlusion|template_|keypoints|_kp|_det\b|surf_|superpixels|retina|matching|"
    r"bicubic|lanczos|nearest_|espcn|edsr|fsrcnn|lapsrn|eigenface|fisherface|markers|pose|/(left|right)\d\d|output"
)
PACKAGES: dict[str, Package] = {
    "gnome-backgrounds": Package("CC-BY-SA-3.0, CC-BY-SA-2.0, CC-BY-2.0 by picture; GPL-2+", split="test"),
    "lomiri-wallpapers-16.04": Package("CC-BY-4.0, CC-BY-SA-3.0, CC-BY-SA-4.0, CC0-1.0 by picture"),
    "lomiri-wallpapers-20.04": Package("CC-BY-4.0, CC-BY-SA-3.0, CC-BY-SA-4.0, CC0-1.0 by picture", split="test"),
    "mate-backgrounds": Package("GPL-2+, CC-BY-SA-4.0 by picture"),
    "nexuiz-textures": Package("GPL-2+", skip=r"/textures/(dmask|fb)|/terrain_dotproduct"),
    "openarena-data": Package(
        "GPL-2+",
        split="test",
        skip=r"/(menu|icons|fonts|gfx|sprites|team_icon|ui|weaphits|effects|oafx|powerups|flags|sfx|muzzle)/",
    ),
    "opencv-doc": Package(
        "Apache-2.0, BSD-3-Clause, BSD-2-Clause, MIT by file", skip=OPENCV_RESULTS, photographs_only=True
    ),
    "plasma-workspace-wallpapers": Package("GPL-2+", skip="screenshot", one_per_folder=True),
    "stellarium-data": Package("GPL-2+", skip=r"/(webroot|gui|icons)/"),
    "supertuxkart-data": Package(
        "CC-BY-SA-3.0, CC-BY-SA-4.0, CC-BY-3.0, CC0-1.0, GPL, public domain by file", skip=r"/(gui|skins|editor)/"
    ),
    "torcs-data": Package("GPL-2+, Free Art License by file", skip=r"/torcs/data/", colour_suffixes=("_n",)),
    "trigger-rally-data": Package(  # h, f, t, m, mm: height, plants, terrain kinds and small maps of each track
        "GPL-2+, CC-BY-SA-3.0, CC-BY-3.0, CC0-1.0 by file", skip=r"/(CodriverSigns|pixmaps)/|/(h|f|t|m|mm)\.(png|jpg)$"
    ),
    "tuxpaint-stamps-default": Package("GPL-2", skip=r"/symbols/"),
    "ufoai-textures": Package("GPL-2+, CC-BY-SA-3.0, CC-BY-3.0, public domain by file"),
    "ukui-wallpapers": Package("CC-BY-SA-3.0"),
}


def write_atomically(path: Path, text: str) -> None:
    """Write UTF-8 text so that a reader sees the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)


def _run(command: Sequence[str], folder: Path, purpose: str) -> str:
    """Standard output of a Debian tool; RuntimeError where the tool is missing or fails."""
    if shutil.which(command[0]) is None:
        raise RuntimeError(
            f"{command[0]} is needed to {purpose} and is not installed: run this on Debian or Ubuntu"
            + (", or pass --debs with a folder that holds the .deb file" if command[0] == "apt-get" else "")
        )
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"could not {purpose}: {' '.join(command)} said: {done.stderr.strip()}")
    return done.stdout


def find_deb(package: str, debs: Path) -> Path:
    """The package's .deb in folder `debs`, downloaded there where it is missing.

    Raises ValueError where the folder holds several versions, RuntimeError where a download is needed and fails.
    """
    debs.mkdir(parents=True, exist_ok=True)
    if not list(debs.glob(f"{package}_*.deb")):
        _run(["apt-get", "download", package], debs, f"download {package}")
    found = sorted(debs.glob(f"{package}_*.deb"))
    if len(found) != 1:
        raise ValueError(f"expected one {package}_*.deb in {debs}, found {[f.name for f in found]}: keep one of them")
    return found[0]


def _members(archive: Path, folder: Path) -> Iterator[tuple[Path, str]]:
    """Pictures of a zip file, unpacked below `folder` under plain numbers, with their names in the archive."""
    with zipfile.ZipFile(archive) as zipped:
        for i, member in enumerate(sorted(zipped.infolist(), key=lambda m: m.filename)):
            suffix = Path(member.filename).suffix.lower()
            if suffix in PICTURES and member.file_size <= LARGEST_MEMBER:
                path = folder / f"{i}{suffix}"
                with contextlib.suppress(zipfile.BadZipFile):  # a damaged member stays cut short, and is counted so
                    with zipped.open(member) as source, open(path, "wb") as target:
                        shutil.copyfileobj(source, target)
                yield path, member.filename


def find_pictures(root: Path, unpacked: Path) -> list[tuple[Path, str]]:
    """Every picture below `root` and inside its .zip and .pk3 files, as (file, name in the package), by name.

    A file that ends in .zip or .pk3 and is no zip file is listed itself, and counted as unreadable later.
    """
    found: list[tuple[Path, str]] = []
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    for i, path in enumerate(files):
        name = path.relative_to(root).as_posix()
        if path.suffix.lower() in ARCHIVES and zipfile.is_zipfile(path):
            folder = unpacked / str(i)
            folder.mkdir(parents=True)
            found += [(file, f"{name}/{member}") for file, member in _members(path, folder)]
        elif path.suffix.lower() in PICTURES | ARCHIVES:
            found.append((path, name))
    return sorted(found, key=lambda item: item[1])


def _pixels(path: Path) -> int:
    """Width times height from the file's header; 0 where it cannot be read."""
    try:
        with Image.open(path) as picture:
            return picture.width * picture.height
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 0


def choose(pictures: list[tuple[Path, str]], package: Package) -> tuple[list[tuple[Path, str]], list[Outcome]]:
    """The pictures worth opening, and the outcome of those that the package's table entry rules out."""
    best: dict[str, str] = {}
    if package.one_per_folder:
        for _, name in sorted((_pixels(path), name) for path, name in pictures):
            best[os.path.dirname(name)] = name
    chosen, dropped = [], []
    for path, name in pictures:
        if package.skip and re.search(package.skip, f"/{name}"):
            dropped.append(Outcome(name, drop="ruled out by folder or name"))
        elif package.one_per_folder and best[os.path.dirname(name)] != name:
            dropped.append(Outcome(name, drop="another size of a kept picture"))
        else:
            chosen.append((path, name))
    return chosen, dropped


def _process_all(jobs: list[Job], workers: int, title: str) -> list[Outcome]:
    with contextlib.ExitStack() as stack:
        if workers > 1:
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(min(workers, 64), mp_context=context))
            outcomes: Iterable[Outcome] = pool.map(process, jobs, chunksize=4)
        else:
            outcomes = map(process, jobs)
        return list(tqdm(outcomes, total=len(jobs), desc=title, unit="picture", mininterval=5.0))


def build_part(name: str, package: Package, deb: Path, output: Path, options: Mapping[str, Any], workers: int) -> None:
    """Write the pictures of one package and then OUTPUT/parts/<package>.json, which marks it as finished."""
    for left in [*(output / "images" / split / name for split in SPLITS), *output.glob(".unpacked-*")]:
        shutil.rmtree(left, ignore_errors=True)  # by a run that was stopped
    with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=output.resolve()) as temporary:
        root, unpacked = Path(temporary, "root"), Path(temporary, "unpacked")
        _run(["dpkg-deb", "-x", str(deb.resolve()), str(root)], Path(temporary), f"unpack {deb.name}")
        version = _run(["dpkg-deb", "-f", str(deb.resolve()), "Version"], Path(temporary), f"read {deb.name}").strip()
        pictures, outcomes = choose(find_pictures(root, unpacked), package)
        jobs = [
            Job(
                path, inside, output, name, package.split, options["short_side"], options["seed"],
                package.photographs_only, package.colour_suffixes,
            )
            for path, inside in pictures
        ]  # fmt: skip
        outcomes += _process_all(jobs, workers, name)
    os.sync()  # the pictures reach the disk before the part that vouches for them
    rows = sorted((asdict(outcome) for outcome in outcomes), key=lambda row: row["name"])
    part = {"package": name, "package_version": version, "licence": package.licence, "options": options, "rows": rows}
    write_atomically(output / "parts" / f"{name}.json", json.dumps(part, ensure_ascii=False, sort_keys=True))


def read_part(path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """A finished package; ValueError where it was made with other options."""
    part: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if part["options"] != options:
        raise ValueError(
            f"{path} was made with {part['options']}, this run asks for {dict(options)}: "
            "choose another --output, or remove that file to make the package again"
        )
    return part


def merge(parts: Sequence[dict[str, Any]], output: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Manifest rows and dropped rows of all packages after duplicates are gone; removes the duplicates' files."""
    sources: list[dict[str, Any]] = []
    dropped: list[dict[str, Any]] = []
    for part in parts:
        for row in part["rows"]:
            row = {**row, "package": part["package"], "package_version": part["package_version"]}
            row["licence"] = part["licence"]
            (dropped if row["drop"] else sources).append(row)
    kept, lost = drop_duplicates(sources)
    dropped += [{**row, "drop": reason} for row, reason in lost]
    manifest = [
        {
            "file": file, "split": row["split"], "package": row["package"], "package_version": row["package_version"],
            "name": row["name"], "licence": row["licence"], "source_sha256": row["sha256"], "width": width,
            "height": height, "source_width": row["size"][0], "source_height": row["size"][1],
        }
        for row in kept
        for file, width, height in row["files"]
    ]  # fmt: skip
    manifest.sort(key=lambda row: row["file"])
    needed = {row["file"] for row in manifest}
    for row, _ in lost:
        for file, _, _ in row["files"]:
            if file not in needed:
                (output / file).unlink(missing_ok=True)
    reasons = [{"package": row["package"], "name": row["name"], "reason": row["drop"]} for row in dropped]
    return manifest, sorted(reasons, key=lambda row: (row["package"], row["name"]))


def summarise(
    manifest: list[dict[str, Any]], dropped: list[dict[str, Any]], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Counts of files and source pictures by package and split, and of dropped files by package and reason."""
    packages: dict[str, Any] = {}
    sources = {(row["package"], row["split"], row["source_sha256"]) for row in manifest}
    for name in options["packages"]:
        packages[name] = {
            "files": dict(Counter(row["split"] for row in manifest if row["package"] == name)),
            "sources": dict(Counter(split for package, split, _ in sources if package == name)),
            "dropped": dict(Counter(row["reason"] for row in dropped if row["package"] == name)),
        }
    return {
        "options": options,
        "packages": packages,
        "files": dict(Counter(row["split"] for row in manifest)),
        "sources": dict(Counter(split for _, split, _ in sources)),
        "dropped": dict(Counter(row["reason"] for row in dropped)),
        "total_files": len(manifest),
        "total_sources": len(sources),
    }


def _check(output: Path, names: Sequence[str], table: Mapping[str, Package], short_side: int, workers: int) -> None:
    unknown = sorted(set(names) - set(table))
    if unknown or not names:
        raise ValueError(f"unknown packages {unknown}: expected some of {', '.join(sorted(table))}")
    if short_side < 32 or workers < 1:
        raise ValueError(f"expected short_side >= 32 and workers >= 1, got {short_side} and {workers}")
    others = sorted(path.stem for path in (output / "parts").glob("[!.]*.json") if path.stem not in names)
    if others:
        raise ValueError(
            f"{output} already holds {', '.join(others)}: name them in --packages too, or choose another folder"
        )


def build_corpus(
    output: Path,
    packages: Sequence[str] | None = None,
    debs: Path | None = None,
    short_side: int = 288,
    workers: int = 2,
    seed: int = 0,
    table: Mapping[str, Package] = PACKAGES,
) -> dict[str, Any]:
    """Build or go on with the corpus in `output` and return its summary.

    `short_side` is in pixels, `seed` draws the validation pictures and the grounds behind transparent ones, `debs`
    (default OUTPUT/debs) holds .deb files and takes the downloaded ones. Raises ValueError for unknown packages and
    for an `output` made with other packages or options, RuntimeError where dpkg-deb or apt-get is missing or fails.
    """
    names = sorted(set(table if packages is None else packages))
    _check(output, names, table, short_side, workers)
    (output / "parts").mkdir(parents=True, exist_ok=True)
    options = {"version": VERSION, "short_side": short_side, "seed": seed}
    paths = {name: output / "parts" / f"{name}.json" for name in names}
    for name in names:
        if not paths[name].exists():
            build_part(name, table[name], find_deb(name, debs or output / "debs"), output, options, workers)
    manifest, dropped = merge([read_part(paths[name], options) for name in names], output)
    missing = sorted({row["package"] for row in manifest if not (output / row["file"]).exists()})
    if missing:  # removed by hand: make the packages again
        for name in missing:
            build_part(name, table[name], find_deb(name, debs or output / "debs"), output, options, workers)
        manifest, dropped = merge([read_part(paths[name], options) for name in names], output)
    summary = summarise(manifest, dropped, {**options, "packages": names})
    write_atomically(output / "dropped.jsonl", _lines(dropped))
    write_atomically(output / "summary.json", json.dumps(summary, indent=2, sort_keys=True) + "\n")
    write_atomically(output / "manifest.jsonl", _lines(manifest))
    return summary


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: see the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m training.corpus", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--packages", help=f"comma-separated, default all of: {', '.join(PACKAGES)}")
    parser.add_argument("--debs", type=Path, help="folder of .deb files (default OUTPUT/debs); downloads the missing")
    parser.add_argument("--short-side", type=int, default=288, help="pixels (default 288); never enlarges")
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--seed", type=int, default=0, help="draws validation pictures and grounds (default 0)")
    given = parser.parse_args(arguments)
    names = [name.strip() for name in given.packages.split(",")] if given.packages else None
    try:
        summary = build_corpus(given.output, names, given.debs, given.short_side, given.workers, given.seed)
    except (ValueError, RuntimeError) as error:
        parser.exit(2, f"error: {error}\n")
    print(json.dumps(summary, indent=2, sort_keys=True))


if __name__ == "__main__":
    main()
