"""``python -m SDMatte``, the same as the command ``sdmatte``."""

import sys

from SDMatte.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
