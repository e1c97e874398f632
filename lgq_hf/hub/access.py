"""Who may publish where: names of the Hub, its token, the right to write, and its client's errors in our words."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from lgq_hf.files import one_line

# what git takes and nobody takes for something else: words of letters, digits and _, joined
_REF = re.compile(r"(?!refs/|HEAD$|[0-9a-f]{40}$)(?!.*\.lock(/|$))\w+((-+|[.+/])\w+)*", re.ASCII)
_TOKEN = re.compile(r"[!-~]+")  # what can stand in a header


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


def check_ref(kind: str, name: str | None) -> None:
    """Refuses what no branch or tag may be called (`ValueError`); `None` is none.

    Args:
        kind: "branch" or "tag", for the message.
        name: of it.
    """
    if name is not None and not _REF.fullmatch(name):
        raise ValueError(
            f"expected the name of a {kind}, of letters, digits and _, joined by . - + or / (no commit, nothing below "
            f"refs/), got {name!r}: take another, such as v1, or leave it out"
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
    check_token(repo_id)
    api = HfApi()
    with explained(f"cannot write to {repo_id}"):
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


def check_token(repo_id: str) -> None:
    """Refuses a missing token, and one that cannot be sent (`ValueError`); none is ever part of a message."""
    check_name(repo_id)
    with explained("cannot read the token of the Hub"):
        token = get_token()
    if token is None:
        raise ValueError(
            f"publishing {repo_id} needs a token of the Hub that may write there, and none was found: make one at "
            f"{constants.ENDPOINT}/settings/tokens, then give it to `hf auth login` or set HF_TOKEN"
        )
    if not _TOKEN.fullmatch(token):  # errors of the client may show it
        raise ValueError(
            "the token of the Hub holds a character that no token has, such as a space or an accent: copy it anew "
            f"from {constants.ENDPOINT}/settings/tokens, then give it to `hf auth login` or set HF_TOKEN"
        )


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Says of errors of the client, ValueErrors too, what was being done; ours are raised outside of it."""
    try:
        yield
    except Exception as error:  # of the client's several libraries, which share no class
        status: Any = getattr(getattr(error, "response", None), "status_code", None)
        hint = {
            401: ". The Hub does not know this token: `hf auth login` again, or look at HF_TOKEN",
            403: ". This token may not write there: take one with write access, of a member of the organization",
        }.get(status, "")
        kind = ValueError if hint else OSError
        raise kind(f"{what}: {one_line(error).rstrip('.')}{hint}") from error


__all__ = ["check_name", "check_ref", "check_token", "explained", "prepare"]
