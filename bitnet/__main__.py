"""`bitnet`, or `python -m bitnet`; a user's mistake is one message with a hint, never a traceback."""

from __future__ import annotations

import sys

from bitnet.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
