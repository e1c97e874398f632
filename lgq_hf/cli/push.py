"""`lgq push`: publishes a checkpoint or a pipeline on the Hub."""

import argparse
from pathlib import Path

from lgq_hf.hub.publishable import Publication, check_publishable
from lgq_hf.hub.push import check_name, check_ref, push


def run(args: argparse.Namespace) -> int:
    """Checks `args.folder`, says what goes, and sends it unless `args.dry_run`; returns 0.

    Raises:
        ValueError, OSError: as `check_publishable` and `push`.
    """
    check_name(args.repository)
    check_ref("branch", args.revision)
    check_ref("tag", args.tag)
    publication = check_publishable(Path(args.folder))
    print("\n".join(listing(publication)))
    if args.dry_run:
        print(f"dry run: nothing was sent to {args.repository}")
        return 0
    pushed = push(
        publication,
        args.repository,
        private=args.private,
        revision=args.revision,
        tag=args.tag,
        message=args.message,
    )
    if pushed.foreign:
        print(f"the repository also holds, from before: {', '.join(pushed.foreign)}")
    if not pushed.changed:
        print("nothing was new: the Hub had all of it")
    print(f"{pushed.url}{f' (tag {args.tag})' if args.tag else ''}")
    return 0


def listing(publication: Publication) -> list[str]:
    """What goes, with sizes in bytes and their sum, what does not, and notes, as lines."""
    total = sum(publication.files.values())
    rows = [*publication.files.items(), (f"{len(publication.files)} files", total)]
    width = len(f"{total:,}")
    lines = [f"{size:>{width},}  {path}" for path, size in rows]
    lines += [f"left out: {path} ({reason})" for path, reason in publication.left_out.items()]
    return lines + [f"note: {note}" for note in publication.notes]


__all__ = ["listing", "run"]
