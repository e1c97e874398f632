"""Publishing on the Hub: a checkpoint's folder as one commit of a model repository, compared with what arrived.

    publication = check_publishable(folder)                     # lgq_hf.hub.publishable
    push(publication, "org/name", tag="v1").url

The settings of huggingface_hub hold: HF_ENDPOINT, HF_HOME, HF_TOKEN.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.hf_api import RepoFile

from lgq_hf._version import __version__
from lgq_hf.checkpoint.downloaded import digest_like
from lgq_hf.checkpoint.loading import quiet
from lgq_hf.files import one_line
from lgq_hf.hub.access import check_name, check_ref, check_token, explained, prepare
from lgq_hf.hub.publishable import Publication
from lgq_hf.hub.publishable_card import CARD, card_for

_MAIN = "main"
_LISTED = 5  # files that a message names
_SHA = 10  # digits of a commit that people are shown


@dataclass(frozen=True)
class Pushed:
    """What a push left on the Hub.

    Attributes:
        url: of the commit.
        commit: its hash.
        changed: whether the commit is new; the Hub may have had these files already.
        foreign: what the repository holds beside them, from before.
    """

    url: str
    commit: str
    changed: bool
    foreign: list[str]


def push(
    publication: Publication,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    message: str | None = None,
) -> Pushed:
    """Uploads a folder as one commit, and compares what the Hub then holds with what was sent.

    What the repository holds beside these files stays. Where the card says `from_pretrained(".")`, as generated
    ones do, the one that is sent names the repository.

    Args:
        publication: the folder, checked.
        repo_id: "org/name"; made if it is not there.
        private: as in `prepare`.
        revision: branch to commit to, made from main if it is not there; `None`: main.
        tag: name to give to the commit; must be new, and that of no branch.
        message: of the commit.

    Raises:
        ValueError: no such name can be, the Hub refuses the card, the tag exists, the revision is a tag; or as
            `prepare`.
        OSError: the upload failed, or what arrived is something else; the message says what the branch holds now. Or
            the tag was not set; the message says how to.
    """
    check_ref("branch", revision)
    check_ref("tag", tag)
    branch = _MAIN if revision is None else revision
    check_token(repo_id)
    _check_metadata(publication.card)
    prepare(repo_id, private=private)
    before = _prepare_branch(repo_id, branch, tag)
    message = message or f"Upload {publication.folder.resolve().name} by lgq_hf {__version__}"
    with TemporaryDirectory() as temporary:
        sent = {path: publication.folder / path for path in publication.files}
        sent[CARD] = Path(temporary) / CARD
        sent[CARD].write_bytes(card_for(publication.folder, repo_id))
        info = _upload(sent, repo_id, branch, before, message)
        foreign = _compare(sent, repo_id, info.oid)
    if tag is not None:
        _set_tag(repo_id, tag, info.oid)
    return Pushed(info.commit_url, info.oid, info.oid != before, foreign)


def _check_metadata(card: ModelCard) -> None:
    refusal = None
    with explained("cannot ask the Hub whether it takes the card"):
        try:
            card.validate(repo_type="model")
        except ValueError as error:  # what the Hub says of it
            refusal = error
    if refusal is not None:
        raise ValueError(f"the Hub refuses the metadata of {CARD}: {one_line(refusal)}") from refusal


def _prepare_branch(repo_id: str, branch: str, tag: str | None) -> str:
    """Makes the branch if there is none; returns the commit that it stands at. Refuses a tag that could not be set."""
    api, what = HfApi(), f"cannot prepare {repo_id}"
    with explained(what):
        refs = api.list_repo_refs(repo_id)
    tags = {one.name: one.target_commit for one in refs.tags}
    if tag in tags:
        raise ValueError(
            f"{repo_id} has a tag {tag!r} already, at commit {tags[tag][:_SHA]}: tags do not move, take another name"
        )
    if tag in {branch, *(one.name for one in refs.branches)}:
        raise ValueError(f"{tag!r} is a branch of {repo_id}, and a tag must be told from it: take another name")
    if branch in tags:
        raise ValueError(f"revision {branch!r} of {repo_id} is a tag: expected the name of a branch")
    with explained(what):
        if branch != _MAIN:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        return str(api.model_info(repo_id, revision=branch).sha)


def _upload(sent: dict[str, Path], repo_id: str, branch: str, before: str, message: str) -> CommitInfo:
    """One commit of files, by path in the repository, on the commit `before`; `OSError` as `push`."""
    try:
        with quiet():
            return HfApi().create_commit(
                repo_id,
                [CommitOperationAdd(path, file) for path, file in sent.items()],
                commit_message=message,
                revision=branch,
                parent_commit=before,
            )
    except Exception as error:  # whatever broke the upload: what it left is told, and the error is its cause
        raise OSError(
            f"the upload to {repo_id} failed: {one_line(error).rstrip('.')}. {_left(repo_id, branch, before)}"
        ) from error


def _compare(sent: dict[str, Path], repo_id: str, commit: str) -> list[str]:
    """What a commit holds beside what was sent.

    Raises:
        OSError: a file is missing there, or has another size or hash; or the Hub cannot be asked.
    """
    with explained(f"commit {commit} of {repo_id} was made, but cannot be looked at"):
        listed = list(HfApi().list_repo_tree(repo_id, recursive=True, revision=commit))
    there = {entry.path: entry for entry in listed if isinstance(entry, RepoFile)}
    wrong = []
    for path, file in sent.items():
        size = file.stat().st_size
        if path not in there:
            wrong.append(f"{path} is missing")
        elif there[path].size != size:
            wrong.append(f"{path} has {there[path].size:,} bytes instead of {size:,}")
        else:
            lfs = there[path].lfs
            expected = there[path].blob_id if lfs is None else lfs.sha256
            if digest_like(file, expected) != expected:
                wrong.append(f"{path} has another hash, {expected[:_SHA]}")
    if wrong:
        more = f" and {len(wrong) - _LISTED} more" if len(wrong) > _LISTED else ""
        raise OSError(
            f"commit {commit} of {repo_id} is not what was sent: {'; '.join(wrong[:_LISTED])}{more}. Push again, and "
            "do not use this commit"
        )
    return sorted(there.keys() - sent.keys() - {".gitattributes"})


def _set_tag(repo_id: str, tag: str, commit: str) -> None:
    command = shlex.join(["hf", "repos", "tag", "create", repo_id, tag, "--revision", commit])
    with explained(
        f"commit {commit} of {repo_id} was made and is what was sent, but its tag {tag!r} was not set. To set it: "
        f"{command}. The reason"
    ):
        HfApi().create_tag(repo_id, tag=tag, revision=commit)


def _left(repo_id: str, branch: str, before: str) -> str:
    """What a branch holds after an upload that failed, in a sentence."""
    try:
        now = str(HfApi().model_info(repo_id, revision=branch).sha)
    except Exception:  # which is told
        return "The Hub cannot be asked what it holds now; give the command again when it can be reached"
    if now == before:
        return f"Its branch {branch} is as it was, at commit {before[:_SHA]}; give the command again"
    return (
        f"Its branch {branch} stands at another commit now, {now[:_SHA]}: that of somebody else, or this one, whose "
        "answer was lost; give the command again, which sends nothing that is there"
    )


__all__ = ["Pushed", "check_name", "check_ref", "prepare", "push"]
