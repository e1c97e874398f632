"""`manifest.json`: what a set of token shards is, which tokenizer made it, and a checksum of every file."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lgq_hf.checkpoint.loading import CODEBOOK, SHORT, Reference, find_checkpoint, fingerprint
from lgq_hf.files import one_line
from lgq_hf.images.sources import CROP, FLIP, ID, SIZES, TOKENS
from lgq_hf.tokenizer.modeling_lgq import LGQModel
from lgq_hf.tokens.plan import FORMAT, VERSION, Footer, Manifest, Plan, Shard, differences
from lgq_hf.tokens.shards import DAMAGED, Folder, read_footer

MANIFEST = "manifest.json"
_TEMPORARY = ".[0-9]*-????????.tmp.json"  # as `atomic_file` names it


def finish(plan: Plan, folder: Folder, footers: Mapping[str, Footer], made: Mapping[str, Shard]) -> Manifest:
    """Writes the manifest of shards that are all there, and returns it.

    Args:
        plan: of the shards.
        folder: with them.
        footers: of all files, by name.
        made: the files that were made just now, by name; the others must be those of a manifest that is there.

    Raises:
        ValueError: a shard was changed after the manifest was written, or no picture could be read.
    """
    old = read_manifest(folder.place) if folder.fs.isfile(folder.path(MANIFEST)) else None
    before = {shard.file: shard for shard in old.shards} if old and old.identity() == plan.identity() else {}
    shards, sizes = [], folder.sizes("data")
    for name in plan.names:
        shard, known = made.get(name), before.get(name)
        if shard is None and known and not folder.local and known.bytes == sizes[name]:
            shard = known  # not downloaded again; `verify` is there for that
        if shard is None:
            with folder.open(name) as file:
                shard = Shard(name, footers[name].rows, sizes[name], hashlib.file_digest(file, "sha256").hexdigest())
            if known and known.sha256 != shard.sha256:
                raise ValueError(
                    f"{name} in {folder.place} does not have the bytes that {MANIFEST} says: delete the file and give "
                    f"the command again (or delete {MANIFEST}, if it was made anew on another machine)"
                )
        shards.append(shard)
    manifest = _summary(plan, footers, shards)
    if not manifest.counts["rows"]:
        last, count = manifest.failures[-1], manifest.counts["pictures"]
        raise ValueError(f"not one of {count} pictures could be read; the last: {last[ID]}: {last['reason']}")
    if manifest != old:
        try:
            with folder.write(MANIFEST) as temporary:
                temporary.write_text(json.dumps(asdict(manifest), indent=1) + "\n", encoding="utf-8")
        except FileNotFoundError:  # another process was faster, and tidied up
            if read_manifest(folder.place) != manifest:
                raise
    if folder.local:  # what a kill left
        for leftover in [*Path(folder.path("data")).glob(".*.tmp.parquet"), *Path(folder.root).glob(_TEMPORARY)]:
            leftover.unlink(missing_ok=True)
    return manifest


def _summary(plan: Plan, footers: Mapping[str, Footer], shards: list[Shard]) -> Manifest:
    """The manifest of these shards."""
    failures = [failure for shard in shards for failure in footers[shard.file].failures]
    versions = [footers[shard.file].versions for shard in shards]
    return Manifest(
        **plan,
        counts={
            "pictures": sum(footers[shard.file].pictures for shard in shards),
            "rows": sum(shard.rows for shard in shards),
            "failures": len(failures),
        },
        failures=failures,
        devices=sorted({footers[shard.file].device for shard in shards}),
        versions=sorted((one for number, one in enumerate(versions) if one not in versions[:number]), key=str),
        shards=shards,
    )


def read_manifest(place: str | Path) -> Manifest:
    """The manifest of a folder of token shards; `manifest["grid"]` is `manifest.grid`.

    Raises:
        ValueError: there is none, or one of another format or version.
    """
    folder = Folder(place)
    if not folder.fs.isfile(folder.path(MANIFEST)):
        raise ValueError(f"no {MANIFEST} in {place}: expected a folder that `lgq tokenize` finished")
    try:
        with folder.open(MANIFEST) as file:
            content = json.load(file)
        form, version = content["format"], content["format_version"]
        if (form, version) == (FORMAT, VERSION):
            return Manifest.read(content)
    except DAMAGED as error:
        raise ValueError(f"{MANIFEST} in {place} is damaged: {type(error).__name__} {one_line(error)}") from error
    raise ValueError(f"{MANIFEST} in {place}: expected format {FORMAT!r} version {VERSION}, got {form!r} {version}")


def check_tokenizer(manifest: Mapping[str, Any], tokenizer: LGQModel | Reference | str | Path) -> None:
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
    there, names = folder.sizes("data"), [shard.file for shard in manifest.shards]
    found = [f"{name} is not in {MANIFEST}" for name in there if name not in names]
    if names != manifest.names:
        found.append(f"{MANIFEST} lists {len(names)} shards, its plan {manifest.files}")
    footers: dict[str, Footer] = {}
    ids: Counter[str] = Counter()
    for shard in manifest.shards:
        if shard.file in there:
            lines = _findings(folder.fs.cat_file(folder.path(shard.file)), manifest, shard, footers, ids)
        else:
            lines = ["is missing"]
        found += [f"{shard.file} {line}" for line in lines]
    if not found:
        told = _summary(manifest.plan, footers, manifest.shards)
        found += [f"{MANIFEST} and shards: {line}" for line in differences(manifest, told)]
    views = Counter(ids.values())
    if len(views) > 1:
        found.append(f"ids differ in how many rows they have: {dict(views)}")
    if found:
        raise ValueError(f"{place} is damaged:\n" + "\n".join(found))
    return manifest


def _findings(
    content: bytes, manifest: Manifest, shard: Shard, footers: dict[str, Footer], ids: Counter[str]
) -> list[str]:
    """What is wrong with one shard; notes its footer, and how many rows each id has."""
    import pyarrow
    from pyarrow import parquet

    sha256 = hashlib.sha256(content).hexdigest()
    if (len(content), sha256) != (shard.bytes, shard.sha256):
        expected = f"expected {shard.bytes} and {shard.sha256[:SHORT]}"
        return [f"has {len(content)} bytes with sha256 {sha256[:SHORT]}, {expected}"]
    footer = read_footer(pyarrow.BufferReader(content), shard.file)
    if footer is None:
        return ["has no footer"]
    footers[shard.file], plan = footer, footer.plan
    found: list[str] = []
    if plan.identity() != manifest.identity():
        found.append(f"is of another plan: {'; '.join(differences(plan, manifest.plan)[:3])}")
    elif plan.tokenizer.revision != manifest.tokenizer.revision:
        found.append(f"is of revision {plan.tokenizer.revision}, {MANIFEST} says another")
    table = parquet.read_table(pyarrow.BufferReader(content))
    if table.num_rows != shard.rows:
        found.append(f"has {table.num_rows} rows, expected {shard.rows}")
    names = {key: table.column(key).to_pylist() for key in (ID, CROP, FLIP)}
    ids.update(names[ID])
    if len(set(zip(*names.values(), strict=True))) != table.num_rows:
        found.append("holds a row twice")
    return found + (_token_findings(table, manifest) if table.num_rows else [])


def _token_findings(table: Any, manifest: Manifest) -> list[str]:
    """Grids of a wrong shape, and tokens that the codebook does not have."""
    import pyarrow.compute as pc

    column, made_by = table.column(TOKENS).combine_chunks(), manifest.tokenizer
    lists = getattr(column, "storage", column)  # datasets may have made an extension type of it
    if manifest.grid:
        expected: list[Any] = [[length] for length in manifest.grid]
    else:
        height, width = (table.column(name).to_numpy() for name in SIZES[:2])
        expected = [height * width * made_by.tokens_per_position]
    for lengths in expected:
        found = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
        if (found != lengths).any():
            return [f"has grids of {sorted({*found.tolist()})[:4]} tokens along one side, expected {lengths[:4]}"]
        lists = lists.flatten()
    largest = pc.max(lists).as_py()
    return [f"has token {largest}, but there are {made_by.codebook_size} codes"] * (largest >= made_by.codebook_size)


__all__ = ["MANIFEST", "Manifest", "check_tokenizer", "finish", "read_manifest", "verify"]
