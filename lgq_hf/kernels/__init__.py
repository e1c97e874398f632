"""Triton kernels behind the assignment op: see README.md here. Nothing here knows the rest of the package."""
