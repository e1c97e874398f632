"""The card of a checkpoint: what it must say before it is published, and what of it is said otherwise on the Hub."""

import re
from pathlib import Path

import yaml
from huggingface_hub import ModelCard

from lgq_hf.files import one_line

CARD = "README.md"
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")  # the form of the Hub's identifiers
HERE = 'from_pretrained(".")'  # what a generated card loads, in the folder that it lies in
# what a generated card says where its writer knows more than the code
STATE_PICTURES = "State here that of the pictures that they were trained on."
STATE_BOTH = "State the licence of these weights here, and of the pictures that they were trained on."


def read_card(folder: Path) -> ModelCard:
    """The card of a folder.

    Raises:
        ValueError: there is none, its metadata cannot be read, or they name no licence.
    """
    path = folder / CARD
    if not path.is_file():
        raise ValueError(
            f"no card in {str(folder)!r}: expected {CARD}, with metadata between lines of --- and at least a license; "
            "trainers and conversions write one"
        )
    try:
        card = ModelCard.load(path)
        fields = card.data.to_dict()
    except (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(f"the metadata of {str(path)!r} cannot be read: {one_line(error)}") from error
    if not fields:
        raise ValueError(
            f"{str(path)!r} has no metadata: begin it with a line ---, 'license: mit' or another, and ---"
        )
    license_ = fields.get("license")
    named = license_ if isinstance(license_, list) else [license_]
    if not named or not all(isinstance(one, str) and LICENSE.fullmatch(one) for one in named):
        raise ValueError(
            f"the card {str(path)!r} names no license: expected an identifier of the Hub's, such as mit, in its "
            f"metadata, got {license_!r}. Say 'license: ...' there (in a recipe: report.license)"
        )
    if "other" in named and not fields.get("license_name"):
        raise ValueError(
            f"the card {str(path)!r} says 'license: other' and not which: expected license_name beside it, as the Hub "
            "does; if you do not know, ask who made the weights before you pass them on"
        )
    return card


def unstated(card: ModelCard) -> str | None:
    """What a card still says that its writer was to replace, and how, in a sentence; `None` if that was done."""
    text = " ".join(card.text.split())
    for placeholder in (STATE_PICTURES, STATE_BOTH):
        if placeholder in text:
            return (
                f"{CARD} still says {placeholder!r}: write there instead what their licence is, or that it is not "
                "known, and where they came from"
            )
    return None


def card_for(folder: Path, repo_id: str) -> bytes:
    """The card of a folder as it goes to a repository: where a generated one loads its own folder, it names that."""
    return (folder / CARD).read_bytes().replace(HERE.encode(), f'from_pretrained("{repo_id}")'.encode())


__all__ = ["CARD", "HERE", "LICENSE", "STATE_BOTH", "STATE_PICTURES", "card_for", "read_card", "unstated"]
