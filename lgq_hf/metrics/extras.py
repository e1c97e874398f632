"""Packages that some parts need and the library does not: imported when they are used, missing with a hint."""

import importlib
from types import ModuleType


def import_extra(module: str, needed_for: str, extra: str = "metrics") -> ModuleType:
    """The module of that name, which an extra of this package installs.

    Args:
        module: name to import, such as "pytorch_msssim".
        needed_for: what cannot be had without it, for the message.
        extra: name of the extra.

    Raises:
        ModuleNotFoundError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        install = f"pip install '.[{extra}]' in a checkout of lgq_hf"
        hint = f"{needed_for} needs the package {module}, which is not installed: {install}"
        raise ModuleNotFoundError(hint, name=module) from error


__all__ = ["import_extra"]
