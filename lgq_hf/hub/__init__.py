"""Publishing on the Hugging Face Hub."""

from .push import Pushed, push

__all__ = ["Pushed", "push"]
