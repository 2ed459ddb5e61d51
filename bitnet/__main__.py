"""`python -m bitnet`; a user's mistake is one message with a hint, never a traceback."""

from __future__ import annotations

import os
import sys

from bitnet.cli.app import app
from bitnet.errors import BitNetError


def main() -> None:
    """Run the command line and leave with the design's exit codes."""
    try:
        app(prog_name="bitnet")
    except BitNetError as error:
        print(f"bitnet: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our text has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
