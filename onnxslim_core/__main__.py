"""`python -m onnxslim_core` is the command line."""

from __future__ import annotations

import sys

from onnxslim_core.cli import main

if __name__ == "__main__":
    sys.exit(main())
