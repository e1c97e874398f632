"""The Space: `lgq demo` with the checkpoint inside the package. For another one add "--model", "org/name"."""

import sys

from lgq_hf.cli.main import main

ARGUMENTS = ["demo", "--host", "0.0.0.0", "--port", "7860"]

if __name__ == "__main__":
    sys.exit(main(ARGUMENTS))
