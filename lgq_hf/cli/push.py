"""`lgq push`: publishes a checkpoint or a pipeline on the Hub."""

import argparse
from pathlib import Path

from lgq_hf.hub import check_name, check_publishable, push


def run(args: argparse.Namespace) -> int:
    """Checks `args.folder`, says what goes, and sends it unless `args.dry_run`; returns 0.

    Raises:
        ValueError, OSError: as `check_publishable` and `push`.
    """
    check_name(args.repository)
    publication = check_publishable(Path(args.folder))
    total = sum(publication.files.values())
    for path, size in [*publication.files.items(), (f"{len(publication.files)} files", total)]:
        print(f"{size:>{len(f'{total:,}')},}  {path}")
    for path in publication.left_out:
        print(f"left out: {path}")
    for note in publication.notes:
        print(f"note: {note}")
    if args.dry_run:
        print(f"dry run: nothing was sent to {args.repository}")
        return 0
    to = {"private": args.private, "revision": args.revision, "tag": args.tag, "message": args.message}
    pushed = push(publication, args.repository, **to)
    if pushed.foreign:
        print(f"the repository also holds, from before: {', '.join(pushed.foreign)}")
    if not pushed.changed:
        print("nothing was new: the Hub had all of it")
    print(f"{pushed.url}{f' (tag {args.tag})' if args.tag else ''}")
    return 0


__all__ = ["run"]
