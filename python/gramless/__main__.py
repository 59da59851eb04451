"""``python -m gramless``."""

import sys

from gramless.integrations.cli import main

if __name__ == "__main__":
    sys.exit(main())
