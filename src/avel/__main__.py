"""``python -m avel``."""

import sys

from avel.cli import main

if __name__ == "__main__":
    sys.exit(main())
