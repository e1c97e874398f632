"""Publishing on the Hugging Face Hub."""

from .publishable import Publication, check_publishable
from .push import Pushed, check_name, prepare, push

__all__ = ["Publication", "Pushed", "check_name", "check_publishable", "prepare", "push"]
