"""Publishing on the Hub: a checkpoint's folder as one commit of a model repository, compared with what arrived.

    publication = check_publishable(folder)                     # lgq_hf.publishable
    push(publication, "org/name", tag="v1").url

The settings of huggingface_hub hold: HF_ENDPOINT, HF_HOME, HF_TOKEN.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

from lgq_hf._version import __version__
from lgq_hf.checkpoint import quiet
from lgq_hf.downloaded import digest_like
from lgq_hf.publishable import Publication

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


def check_name(repo_id: str) -> None:
    """Refuses what is no "org/name"; `ValueError`."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"expected a repository as ORG/NAME, got {repo_id!r}: {error}") from error
    if repo_id.count("/") != 1:
        raise ValueError(
            f"expected a repository as ORG/NAME, got {repo_id!r}: whose is it? Your own name is an ORG too"
        )


def prepare(repo_id: str, *, private: bool = False) -> None:
    """Makes the repository if there is none, so that a missing token or permission shows now and not later.

    Args:
        repo_id: "org/name".
        private: make it so; where it exists, it must be. Otherwise it is as its owner's repositories are.

    Raises:
        ValueError: no such name can be, no token, one that may not write there, or a public repository that was to be
            private.
        OSError: the Hub cannot be reached, or fails.
    """
    _check_token(repo_id)
    api = HfApi()
    with _explained(f"cannot write to {repo_id}"):
        try:
            found = api.model_info(repo_id)
        except RepositoryNotFoundError:
            api.create_repo(repo_id, repo_type="model", private=private or None)  # None: as the organization has it
            return
        api.auth_check(repo_id, write=True)
    if private and not found.private:
        raise ValueError(
            f"{repo_id} exists and is public: make it private in its settings on the Hub, take another name, or do "
            "not ask for a private one"
        )


def _check_token(repo_id: str) -> None:
    check_name(repo_id)
    if get_token() is None:
        raise ValueError(
            f"publishing {repo_id} needs a token of the Hub that may write there, and none was found: make one at "
            f"{constants.ENDPOINT}/settings/tokens, then give it to `hf auth login` or set HF_TOKEN"
        )


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

    What the repository holds beside these files stays.

    Args:
        publication: the folder, checked.
        repo_id: "org/name"; made if it is not there.
        private: as in `prepare`.
        revision: branch to commit to, made from main if it is not there; `None`: main.
        tag: name to give to the commit; must be new.
        message: of the commit.

    Raises:
        ValueError: the Hub refuses the card, the tag exists, the revision is a tag; or as `prepare`.
        OSError: the upload failed, or what arrived is something else; the message says what the branch holds now.
    """
    branch = revision or _MAIN
    _check_token(repo_id)
    with _explained("cannot ask the Hub whether it takes the card"):
        try:
            publication.card.validate(repo_type="model")
        except ValueError as error:
            raise ValueError(f"the Hub refuses the metadata of README.md: {error}") from error
    prepare(repo_id, private=private)
    api = HfApi()
    with _explained(f"cannot prepare {repo_id}"):
        refs = api.list_repo_refs(repo_id)
        tags = {one.name: one.target_commit for one in refs.tags}
        if tag in tags:
            raise ValueError(
                f"{repo_id} has a tag {tag!r} already, at commit {tags[tag][:_SHA]}: tags do not move, take another "
                "name"
            )
        if branch in tags:
            raise ValueError(f"revision {branch!r} of {repo_id} is a tag: expected the name of a branch")
        if branch != _MAIN:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        before = str(api.model_info(repo_id, revision=branch).sha)
    operations = [CommitOperationAdd(path, publication.folder / path) for path in publication.files]
    try:
        with quiet():
            info = api.create_commit(
                repo_id,
                operations,
                commit_message=message or f"Upload {publication.folder.resolve().name} by lgq_hf {__version__}",
                revision=branch,
                parent_commit=before,
            )
    except Exception as error:  # whatever broke the upload: what it left is told, and the error is its cause
        raise OSError(
            f"the upload to {repo_id} failed: {_one_line(error)}. {_left(repo_id, branch, before)}"
        ) from error
    with _explained(f"commit {info.oid} of {repo_id} was made, but cannot be looked at"):
        foreign = _compare(api, publication, repo_id, info.oid)
        if tag is not None:
            api.create_tag(repo_id, tag=tag, revision=info.oid)
    return Pushed(info.commit_url, info.oid, info.oid != before, foreign)


def _compare(api: HfApi, publication: Publication, repo_id: str, commit: str) -> list[str]:
    """What a commit holds beside what was sent.

    Raises:
        OSError: a file is missing there, or has another size or hash.
    """
    listed = api.list_repo_tree(repo_id, recursive=True, revision=commit)
    there = {entry.path: entry for entry in listed if isinstance(entry, RepoFile)}
    wrong = []
    for path, size in publication.files.items():
        if path not in there:
            wrong.append(f"{path} is missing")
        elif there[path].size != size:
            wrong.append(f"{path} has {there[path].size:,} bytes instead of {size:,}")
        else:
            lfs = there[path].lfs
            expected = there[path].blob_id if lfs is None else lfs.sha256
            if digest_like(publication.folder / path, expected) != expected:
                wrong.append(f"{path} has another hash, {expected[:_SHA]}")
    if wrong:
        more = f" and {len(wrong) - _LISTED} more" if len(wrong) > _LISTED else ""
        raise OSError(
            f"commit {commit} of {repo_id} is not what was sent: {'; '.join(wrong[:_LISTED])}{more}. Push again, and "
            "do not use this commit"
        )
    return sorted(there.keys() - publication.files.keys() - {".gitattributes"})


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


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Says of errors of the client what was being done; ValueErrors of ours pass."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:  # of the client's several libraries, which share no class
        status: Any = getattr(getattr(error, "response", None), "status_code", None)
        hint = {
            401: ". The Hub does not know this token: `hf auth login` again, or look at HF_TOKEN",
            403: ". This token may not write there: take one with write access, of a member of the organization",
        }.get(status, "")
        kind = ValueError if hint else OSError
        raise kind(f"{what}: {_one_line(error)}{hint}") from error


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.rstrip(".")


__all__ = ["Pushed", "check_name", "prepare", "push"]
