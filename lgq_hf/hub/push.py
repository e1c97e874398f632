"""Publishing on the Hub: a checkpoint's folder as one commit of a model repository, compared with what arrived.

    push(check_publishable(folder), "org/name", tag="v1").url

The settings of huggingface_hub hold: HF_ENDPOINT, HF_HOME, HF_TOKEN.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, get_token
from huggingface_hub.utils import validate_repo_id

from lgq_hf._version import __version__
from lgq_hf.checkpoint.loading import quiet
from lgq_hf.files import one_line

from .publishable import CARD, HERE, Publication


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
    validate_repo_id(repo_id)
    if repo_id.count("/") != 1:
        raise ValueError(f"expected a repository as ORG/NAME, got {repo_id!r}: your own name is an ORG too")


def prepare(repo_id: str, *, private: bool = False) -> None:
    """Makes the repository if there is none, so that a missing token or permission shows now and not later.

    Args:
        repo_id: "org/name".
        private: make it so; where it exists, it must be. Otherwise it is as its owner's repositories are.

    Raises:
        ValueError: no such name can be, no token, or a public repository that was to be private.
        OSError: the token may not write there, or the Hub cannot be reached.
    """
    check_name(repo_id)
    if get_token() is None:
        raise ValueError(f"publishing {repo_id} needs a token that may write there: `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    with _saying(f"cannot write to {repo_id}"):
        api.create_repo(repo_id, private=private or None, exist_ok=True)  # None: as the organization has it
        api.auth_check(repo_id, write=True)
        public = private and not api.model_info(repo_id).private
    if public:
        raise ValueError(f"{repo_id} exists and is public: make it private in its settings, or take another name")


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
        ValueError: a tag or branch has the tag's name, a tag has the branch's; or as `prepare`.
        OSError: the Hub refuses the card, the upload failed or what arrived is something else; or the tag was not set.
    """
    prepare(repo_id, private=private)
    api, folder, branch = HfApi(), publication.folder, "main" if revision is None else revision
    with _saying(f"cannot prepare {repo_id}"):
        ModelCard.load(folder / CARD).validate(repo_type="model")
        refs = api.list_repo_refs(repo_id)
    tags = {ref.name for ref in refs.tags}
    if tag in {branch, *tags, *(ref.name for ref in refs.branches)} or branch in tags:
        raise ValueError(f"{repo_id}: tag {tag!r} must be new and no branch's name, and branch {branch!r} no tag's")
    card = (folder / CARD).read_bytes()
    card_sent = card.replace(HERE.encode(), f'from_pretrained("{repo_id}")'.encode())
    sent = [CommitOperationAdd(path, card_sent if path == CARD else folder / path) for path in publication.files]
    message = message or f"Upload {folder.resolve().name} by lgq_hf {__version__}"
    with quiet(), _saying(f"the upload to {repo_id} failed"):
        if branch != "main":
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        before = api.model_info(repo_id, revision=branch).sha  # the parent: nobody else's commit is written over
        info = api.create_commit(repo_id, sent, commit_message=message, revision=branch, parent_commit=before)
        arrived = api.verify_repo_checksums(repo_id, revision=info.oid, local_dir=folder)
    other = {one["path"] for one in arrived.mismatches if one["path"] != CARD or card == card_sent}
    if wrong := sorted(publication.files.keys() & {*other, *arrived.extra_paths}):
        raise OSError(f"commit {info.oid} of {repo_id} is not what was sent ({', '.join(wrong)}): push again")
    if tag is not None:
        with _saying(f"commit {info.oid} of {repo_id} was made, but its tag {tag!r} was not set"):
            api.create_tag(repo_id, tag=tag, revision=info.oid)
    foreign = sorted({*arrived.missing_paths} - {".gitattributes"})
    return Pushed(info.commit_url, info.oid, info.oid != before, foreign)


@contextmanager
def _saying(what: str) -> Iterator[None]:
    """Says what was being done of an error of the client, whose libraries share no class: an `OSError` of one line."""
    try:
        yield
    except Exception as error:
        raise OSError(f"{what}: {one_line(error)}") from error


__all__ = ["Pushed", "check_name", "prepare", "push"]
