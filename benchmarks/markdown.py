"""What the tables share: numbers and reasons as text, and the line that says where they were measured."""

from collections.abc import Callable
from typing import Any

_REASONS = ("refused", "out_of_memory", "unavailable")


def digits(value: float) -> str:
    """Three significant digits, never an exponent."""
    if value >= 99.95 or value == 0:
        return f"{value:.0f}"
    return f"{value:.3g}" if value >= 0.001 else f"{value:.5f}"


def cell(text: str) -> str:
    """Text that may stand in a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def reason_of(row: dict[str, Any] | None) -> str | None:
    """Why a row has no figures; `None` where it has."""
    if row is None:
        return "not measured"
    for key in _REASONS:
        if key in row:
            return f"{key.replace('_', ' ')}: {row[key]}"
    return None


def provenance_line(result: dict[str, Any]) -> str:
    """Machine, commit, versions and seed."""
    hardware, versions = result["hardware"], result["versions"]
    where = f"{hardware['cpu']}, {hardware['threads']} threads"
    if "gpu_rates" in result:
        where = hardware["gpu"]
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if version and name != "lgq_hf")
    if result["load_average"] > 0.5:
        where += f" (busy: load average {result['load_average']:.1f} before)"
    return f"Measured on {where} at commit `{result['commit'][:12]}` with {named}; seed {result['seed']}."


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
