"""``python -m SDMatte``: the command line."""

import sys

from SDMatte.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
