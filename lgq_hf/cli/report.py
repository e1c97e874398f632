"""Progress, lines for the user, and the list of pictures that failed."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from PIL import Image
from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]  # types-tqdm is not on every index

from lgq_hf.images.opening import open_picture

Item = TypeVar("Item")

_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def shown(name: str) -> str:
    """`name` as it may be printed: control characters and bytes that are no text appear as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


class Report:
    """Collects the pictures that failed, and writes lines above the progress bar."""

    def __init__(self, failures: Sequence[tuple[str, str]] = ()) -> None:
        """Begins with the inputs that failed before any work: name and reason of each."""
        self.failures: list[tuple[str, str]] = []
        for name, reason in failures:
            self.fail(name, reason)

    def open(self, path: Path) -> Image.Image:
        """Reads a picture and notes what Pillow warned of; errors as in `open_picture`."""
        picture, warnings = open_picture(path)
        for warning in warnings:
            self.note(f"{path}: {warning}")
        return picture

    def progress(self, items: Sequence[Item], verb: str) -> Iterator[Item]:
        """Yields the items under a progress bar on stderr, if that is a terminal."""
        yield from tqdm(items, desc=verb, unit="picture", disable=None, dynamic_ncols=True)

    def line(self, text: str) -> None:
        """Prints a line of the result on stdout, above the progress bar."""
        tqdm.write(shown(text), file=sys.stdout)

    def note(self, text: str) -> None:
        """Prints a line on stderr, above the progress bar."""
        tqdm.write(f"lgq: {shown(text)}", file=sys.stderr)

    def fail(self, name: str, reason: str) -> None:
        """Notes that `name` failed, now and for the list at the end."""
        self.failures.append((name, reason))
        self.note(f"{name}: {reason}")

    @contextmanager
    def one(self, name: str) -> Iterator[None]:
        """Ends the block at an error that is this picture's own, and notes it; the work goes on behind the block."""
        try:
            yield
        except BrokenPipeError:  # nobody reads our lines any more
            raise
        except (ValueError, OSError) as error:
            self.fail(name, (str(error).splitlines() or [type(error).__name__])[0])
        except (MemoryError, RuntimeError) as error:  # torch's are RuntimeErrors
            if isinstance(error, RuntimeError) and not any(words in str(error) for words in _NO_MEMORY):
                raise
            self.fail(name, "not enough memory for a picture of this size")

    def finish(self, done: int) -> int:
        """Lists the failures on stderr; returns the exit status, 1 if there are any."""
        if not self.failures:
            return 0
        total = done + len(self.failures)
        lines = [f"  {shown(name)}: {shown(reason)}" for name, reason in self.failures]
        heading = f"lgq: {len(self.failures)} of {total} pictures failed:"
        tqdm.write("\n".join(["", heading, *lines]), file=sys.stderr)
        return 1


__all__ = ["Report", "shown"]
