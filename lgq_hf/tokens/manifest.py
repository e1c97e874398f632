"""`manifest.json`: what a set of token shards is, which tokenizer made it, and a checksum of every file."""

import hashlib
import json
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from lgq_hf.checkpoint.loading import CODEBOOK, SHORT, Reference, find_checkpoint, fingerprint
from lgq_hf.images.sources import CROP, FLIP, ID, SIZES, TOKENS
from lgq_hf.tokenizer.modeling_lgq import LGQModel
from lgq_hf.tokens.plan import FORMAT, VERSION, Plan, differences, file_names, identity
from lgq_hf.tokens.shards import Folder, read_footer

MANIFEST = "manifest.json"
_TEMPORARY = ".[0-9]*-????????.tmp.json"  # as `atomic_file` names it
_FOUND = ("counts", "failures", "devices", "versions", "shards")  # what a manifest has beside the plan
Manifest = dict[str, Any]


def finish(plan: Plan, folder: Folder, made: Collection[int] = ()) -> Manifest:
    """Writes the manifest of shards that are all there, and returns it.

    Args:
        plan: of the shards.
        folder: with them.
        made: numbers of the files that were made just now; the others must be those of a manifest that is there.

    Raises:
        ValueError: a shard is missing or was changed after the manifest was written, or no picture could be read.
    """
    manifest = _summary(plan, folder)
    if folder.exists(MANIFEST):
        old = read_manifest(folder.place)
        before = {shard["file"]: shard["sha256"] for shard in old["shards"]}
        if identity(_plan_of(old)) != identity(plan):
            before = {}
        new = {name for number, name in enumerate(file_names(plan)) if number in made}
        for shard in manifest["shards"]:
            if shard["file"] not in new and before.get(shard["file"], shard["sha256"]) != shard["sha256"]:
                raise ValueError(
                    f"{shard['file']} in {folder.place} does not have the bytes that {MANIFEST} says: delete the file "
                    f"and give the command again (or delete {MANIFEST}, if it was made anew on another machine)"
                )
    _write(folder, json.dumps(manifest, indent=1) + "\n")
    if folder.local:  # what a kill left; whoever still writes writes what is there already
        for leftover in [*Path(folder.path("data")).glob(".*.tmp.parquet"), *Path(folder.root).glob(_TEMPORARY)]:
            leftover.unlink(missing_ok=True)
    return manifest


def _plan_of(manifest: Manifest) -> Plan:
    return {key: value for key, value in manifest.items() if key not in _FOUND}


def _summary(plan: Plan, folder: Folder) -> Manifest:
    """The manifest of shards as they are."""
    shards, failures, devices, versions = [], [], set(), []
    pictures = 0
    for name in file_names(plan):
        footer = read_footer(folder, name)
        if footer is None:
            raise ValueError(f"{name} is not in {folder.place}")
        size, sha256 = _checksum(folder, name)
        shards.append({"file": name, "rows": footer["rows"], "bytes": size, "sha256": sha256})
        pictures += footer["pictures"]
        failures += footer["failures"]
        devices.add(footer["device"])
        if footer["versions"] not in versions:
            versions.append(footer["versions"])
    rows = sum(shard["rows"] for shard in shards)
    if not rows:
        raise ValueError(
            f"not one of {pictures} pictures could be read; the last: {failures[-1][ID]}: {failures[-1]['reason']}"
        )
    return {
        **plan,
        "counts": {"pictures": pictures, "rows": rows, "failures": len(failures)},
        "failures": failures,
        "devices": sorted(devices),
        "versions": sorted(versions, key=str),
        "shards": shards,
    }


def _write(folder: Folder, content: str) -> None:
    """Writes the manifest where it is not there; several processes may do so at once, all with the same content."""
    if _holds(folder, content):
        return
    try:
        with folder.write(MANIFEST) as temporary:
            temporary.write_text(content, encoding="utf-8")
    except FileNotFoundError:  # another process was faster, and tidied up
        if not _holds(folder, content):
            raise


def _holds(folder: Folder, content: str) -> bool:
    return folder.exists(MANIFEST) and bool(folder.fs.cat_file(folder.path(MANIFEST)) == content.encode())


def _checksum(folder: Folder, name: str) -> tuple[int, str]:
    """Size in bytes and sha256 (hex) of a file."""
    digest, size = hashlib.sha256(), 0
    with folder.open(name) as file:
        while block := file.read(2**20):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def read_manifest(place: str | Path) -> Manifest:
    """The manifest of a folder of token shards.

    Raises:
        ValueError: there is none, or one of another format or version.
    """
    folder = Folder(place)
    if not folder.exists(MANIFEST):
        raise ValueError(f"no {MANIFEST} in {place}: expected a folder that `lgq tokenize` finished")
    try:
        with folder.open(MANIFEST) as file:
            manifest: Manifest = json.load(file)
        form, version = manifest["format"], manifest["format_version"]
        if (form, version) == (FORMAT, VERSION):
            _check_parts(manifest)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{MANIFEST} in {place} is damaged: {type(error).__name__} {error}") from error
    if (form, version) != (FORMAT, VERSION):
        raise ValueError(
            f"{MANIFEST} in {place}: expected format {FORMAT!r} version {VERSION}, got {form!r} {version}"
        )
    return manifest


def _check_parts(manifest: Manifest) -> None:
    """Raises KeyError or TypeError where a part that is read later is missing or of another type."""
    numbers = [manifest["files"], manifest["pictures_per_file"], manifest["source"]["pictures"]]
    numbers += [manifest["counts"][name] for name in ("pictures", "rows", "failures")]
    numbers += [manifest["tokenizer"][name] for name in ("codebook_size", "tokens_per_position")]
    numbers += [shard[name] for shard in manifest["shards"] for name in ("rows", "bytes")]
    texts = [shard[name] for shard in manifest["shards"] for name in ("file", "sha256")]
    texts += [manifest["tokenizer"][name] for name in ("name", "weights_sha256", "codebook_sha256")]
    texts += [manifest["source"]["split"], manifest["dtype"], *manifest["features"]]
    for values, kind in ((numbers, int), (texts, str), ([*(manifest["grid"] or []), *(manifest["size"] or [])], int)):
        if wrong := [value for value in values if not isinstance(value, kind)]:
            raise TypeError(f"expected {kind.__name__}, got {wrong[0]!r}")
    manifest["preprocessing"]["crops"]
    manifest["failures"], manifest["devices"], manifest["versions"]


def check_tokenizer(manifest: Manifest, tokenizer: LGQModel | Reference | str | Path) -> None:
    """Refuses a tokenizer that is not the one that made the tokens.

    Args:
        manifest: of the tokens.
        tokenizer: folder, repository or `Reference`: all weights are compared. A model: all weights if it is fp32;
            in a lower precision its codebook, which stays fp32.

    Raises:
        ValueError: naming both.
    """
    made_by = manifest["tokenizer"]
    if isinstance(tokenizer, LGQModel):
        state = sorted(tokenizer.state_dict().items())
        whole = all(value.dtype != torch.bfloat16 and value.dtype != torch.float16 for _, value in state)
        key = "weights_sha256" if whole else "codebook_sha256"
        found = fingerprint(state if whole else [item for item in state if item[0].startswith(CODEBOOK)])
        called = tokenizer.name_or_path or "the model"
        if not whole and not any(name.startswith(CODEBOOK) for name, _ in state):
            raise ValueError(
                f"{called!r} is in half precision and has no codebook to be told by: give its folder or "
                "repository, or load it in float32"
            )
    else:
        reference = tokenizer if isinstance(tokenizer, Reference) else find_checkpoint(str(tokenizer))
        key, found, called = "weights_sha256", reference.weights, reference.name
    if found != made_by[key]:
        raise ValueError(
            f"these tokens were made by {made_by['name']!r} ({key} {made_by[key][:SHORT]}, K="
            f"{made_by['codebook_size']}), not by {called!r} ({found[:SHORT]}): to another tokenizer the same numbers "
            "mean other pictures. Give the tokenizer that made them, or make the tokens anew"
        )


def verify(place: str | Path) -> Manifest:
    """Reads every file of a set of token shards and compares it with the manifest, which is returned.

    Raises:
        ValueError: what is damaged, missing or too much: all findings, one in a line.
    """
    folder, manifest = Folder(place), read_manifest(place)
    found: list[str] = []
    names = [shard["file"] for shard in manifest["shards"]]
    if names != file_names(manifest):
        found.append(f"{MANIFEST} lists {len(names)} shards, its plan {manifest['files']}")
    for name in folder.names("data"):
        if name not in names and not name.rpartition("/")[2].startswith("."):
            found.append(f"{name} is not in {MANIFEST}")
    ids: Counter[str] = Counter()
    for shard in manifest["shards"]:
        found += _shard_findings(folder, manifest, shard, ids)
    if not found:
        told = _summary(_plan_of(manifest), folder)
        found += [f"{MANIFEST} and shards: {line}" for line in differences(manifest, told)]
    views = Counter(ids.values())
    if len(views) > 1:
        found.append(f"ids differ in how many rows they have: {dict(views)}")
    if found:
        raise ValueError(f"{place} is damaged:\n" + "\n".join(found))
    return manifest


def _shard_findings(folder: Folder, manifest: Manifest, shard: dict[str, Any], ids: Counter[str]) -> list[str]:
    """What is wrong with one shard."""
    from pyarrow import parquet

    name = shard["file"]
    if not folder.exists(name):
        return [f"{name} is missing"]
    size, sha256 = _checksum(folder, name)
    if (size, sha256) != (shard["bytes"], shard["sha256"]):
        expected = f"expected {shard['bytes']} and {shard['sha256'][:SHORT]}"
        return [f"{name}: its {size} bytes have sha256 {sha256[:SHORT]}, {expected}"]
    found = []
    footer = read_footer(folder, name)
    plan = _plan_of(manifest)
    if footer is None or identity(footer["plan"]) != identity(plan):
        lines = differences(footer["plan"], plan) if footer else ["no footer"]
        found.append(f"{name} is of another plan: {'; '.join(lines[:3])}")
    elif footer["plan"]["tokenizer"]["revision"] != manifest["tokenizer"]["revision"]:
        found.append(f"{name} is of revision {footer['plan']['tokenizer']['revision']}, {MANIFEST} says another")
    with folder.open(name) as file:
        table = parquet.read_table(file)
    if table.num_rows != shard["rows"]:
        found.append(f"{name} has {table.num_rows} rows, expected {shard['rows']}")
    names = {key: table.column(key).to_pylist() for key in (ID, CROP, FLIP)}
    ids.update(names[ID])
    if len(set(zip(*names.values(), strict=True))) != table.num_rows:
        found.append(f"{name} holds a row twice")
    if table.num_rows:
        found += [f"{name}: {line}" for line in _token_findings(table, manifest)]
    return found


def _token_findings(table: Any, manifest: Manifest) -> list[str]:
    """Grids of a wrong shape, and tokens that the codebook does not have."""
    import pyarrow.compute as pc

    column, codes = table.column(TOKENS).combine_chunks(), manifest["tokenizer"]["codebook_size"]
    lists = getattr(column, "storage", column)  # datasets may have made an extension type of it
    if manifest["grid"]:
        expected: list[Any] = [[length] for length in manifest["grid"]]
    else:
        height, width = (table.column(name).to_numpy() for name in SIZES[:2])
        expected = [height * width * manifest["tokenizer"]["tokens_per_position"]]
    for lengths in expected:
        found = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
        if (found != lengths).any():
            return [f"grids of {sorted({*found.tolist()})[:4]} tokens along one side, expected {lengths[:4]}"]
        lists = lists.flatten()
    largest = pc.max(lists).as_py()
    return [f"token {largest}, but there are {codes} codes"] if largest >= codes else []


__all__ = ["MANIFEST", "Manifest", "check_tokenizer", "finish", "read_manifest", "verify"]
