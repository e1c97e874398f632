"""The client of this process, turned to a Hub of the tests: it reads its settings when it is imported.

That does for uploads. Downloads have the address built in by then, and take a process of their own.
"""

from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.hub_server import TOKEN, Hub


def turn_to(hub: Hub, home: Path, patch: pytest.MonkeyPatch, *, token: str | None = TOKEN) -> None:
    """Uploads of this process go to `hub`, by LFS rather than Xet, with this token or with none."""
    patch.setattr(constants, "ENDPOINT", hub.url)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    patch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    if token is None:
        patch.delenv("HF_TOKEN", raising=False)
    else:
        patch.setenv("HF_TOKEN", token)
