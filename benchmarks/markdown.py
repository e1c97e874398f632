"""What the tables share: numbers and cells as text, and markers."""

from collections.abc import Callable


def digits(value: float) -> str:
    """Three significant digits, never an exponent."""
    if value >= 99.95 or value == 0:
        return f"{value:.0f}"
    return f"{value:.3g}" if value >= 0.001 else f"{value:.5f}"


def cell(text: str) -> str:
    """Text that may stand in a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def replace_between(text: str, begin: str, end: str, make: Callable[[], str]) -> str:
    """`text` with what stands between `begin` and the next `end` made anew; as it is where there is no `begin`.

    Raises:
        ValueError: where `begin` stands twice, or no `end` follows it.
    """
    before, found, rest = text.partition(begin)
    if not found:
        return text
    _, closed, after = rest.partition(end)
    if begin in rest or not closed:
        raise ValueError(f"expected one '{begin}' and an '{end}' behind it")
    return f"{before}{begin}\n{make()}\n{end}{after}"
