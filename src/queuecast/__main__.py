"""`python -m queuecast` is the command `queuecast`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
