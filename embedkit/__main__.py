"""`python -m embedkit` is the command `embedkit`."""

import sys

from embedkit.cli.main import run

if __name__ == "__main__":
    sys.exit(run())
