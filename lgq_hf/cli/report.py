"""Progress, lines for the user, and the list of images that failed."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from PIL import Image
from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]  # types-tqdm is not on every index

from lgq_hf.images.opening import open_picture

Item = TypeVar("Item")

_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
_LISTED = 20  # failures that are printed of those that a result holds


def shown(name: str) -> str:
    """`name` as it may be printed: control characters and bytes that are no text appear as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A function of the images done and of all, which moves a bar on stderr, if that is a terminal."""
    with tqdm(desc=what, unit="image", disable=None, dynamic_ncols=True, delay=1e-9) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update


def list_failures(failures: Sequence[tuple[str, str]], total: int, *, place: str | None = None) -> int:
    """Lists the images that failed, by name and reason, on stderr; returns the exit status, 1 if there are any.

    Args:
        failures: of them.
        total: images in all.
        place: where all of them stand, if a long list is cut short.
    """
    if not failures:
        return 0
    listed = failures if place is None else failures[:_LISTED]
    lines = [f"  {shown(name)}: {shown(reason)}" for name, reason in listed]
    more = [f"  and {len(failures) - len(listed)} more, all in {place}"] if len(failures) > len(listed) else []
    heading = f"lgq: {len(failures)} of {total} images failed:"
    tqdm.write("\n".join(["", heading, *lines, *more]), file=sys.stderr)
    return 1


class Report:
    """Collects the images that failed, and writes lines above the progress bar."""

    def __init__(self, failures: Sequence[tuple[str, str]] = ()) -> None:
        """Begins with the inputs that failed before any work: name and reason of each."""
        self.failures: list[tuple[str, str]] = []
        for name, reason in failures:
            self.fail(name, reason)

    def open(self, path: Path) -> Image.Image:
        """Reads an image and notes what Pillow warned of; errors as in `open_picture`."""
        image, warnings = open_picture(path)
        for warning in warnings:
            self.note(f"{path}: {warning}")
        return image

    def progress(self, items: Sequence[Item], verb: str) -> Iterator[Item]:
        """Yields the items under a progress bar on stderr, if that is a terminal."""
        yield from tqdm(items, desc=verb, unit="image", disable=None, dynamic_ncols=True)

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
        """Ends the block at an error that is this image's own, and notes it; the work goes on behind the block."""
        try:
            yield
        except BrokenPipeError:  # nobody reads our lines any more
            raise
        except (ValueError, OSError) as error:
            self.fail(name, (str(error).splitlines() or [type(error).__name__])[0])
        except (MemoryError, RuntimeError) as error:  # torch's are RuntimeErrors
            if isinstance(error, RuntimeError) and not any(words in str(error) for words in _NO_MEMORY):
                raise
            self.fail(name, "not enough memory for an image of this size")

    def finish(self, done: int) -> int:
        """Lists the failures on stderr; returns the exit status, 1 if there are any."""
        return list_failures(self.failures, done + len(self.failures))


__all__ = ["Report", "list_failures", "progress_bar", "shown"]
