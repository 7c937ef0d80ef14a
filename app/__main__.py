"""Owns `python -m app`, which is `tfoai` without its being installed. Knows nothing else."""

import sys

from app.cli import main

if __name__ == "__main__":
    sys.exit(main())
