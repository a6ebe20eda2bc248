"""``python -m scamac_scale`` is the command line."""

import sys

from scamac_scale.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
