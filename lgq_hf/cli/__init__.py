"""The command line `lgq`: one file per command; `main.py` reads the arguments."""
