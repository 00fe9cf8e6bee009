"""python -m chatbench, torchrun -m chatbench, and the console script."""

from __future__ import annotations

import sys


def main() -> None:
    from chatbench.cli import run

    sys.exit(run())


if __name__ == "__main__":
    main()
