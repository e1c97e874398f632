"""The picture of a card: originals beside reconstructions, as a JPEG small enough to travel with the weights.

    python -m model_cards.picture NAME FILE

FILE is what `lgq reconstruct` wrote with the checkpoint NAME.
"""

import sys
from pathlib import Path

from PIL import Image

from lgq_hf.files import atomic_file
from model_cards.card import PICTURE, place_of


def main(arguments: list[str] | None = None) -> int:
    """Command line; `ValueError` for a checkpoint that has no card."""
    name, file = sys.argv[1:] if arguments is None else arguments
    place = place_of(name).with_name(PICTURE)
    with Image.open(Path(file)) as picture, atomic_file(place) as temporary:
        picture.convert("RGB").save(temporary, "JPEG", quality=90, subsampling=0, optimize=True)
    print(f"{place} ({place.stat().st_size / 1000:.0f} kB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
