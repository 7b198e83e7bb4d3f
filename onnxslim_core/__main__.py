"""`python -m onnxslim_core` is the command line."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from onnxslim_core.cli import main
    except KeyboardInterrupt:  # before anything is there that could tell of it
        sys.exit(130)
    sys.exit(main())
