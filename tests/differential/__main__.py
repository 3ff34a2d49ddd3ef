"""See `nightly`. A module of its own, as the processes that it spawns must be able to import it."""

import sys

from tests.differential.nightly import main

if __name__ == "__main__":
    sys.exit(main())
