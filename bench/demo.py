"""The figures of `onnxslim-core demo`, kept for the README.

python bench/demo.py [--threads N]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from _common import RESULTS, write_result

from onnxslim_core.demo.run import demonstrate


def main() -> None:
    """Run the demo and write demo.json."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    print(write_result("demo", demonstrate(threads=args.threads).document(), args.out).name)


if __name__ == "__main__":
    main()
