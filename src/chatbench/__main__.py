"""python -m chatbench, torchrun -m chatbench, and the console script."""

from __future__ import annotations

import os
import sys


def main() -> None:
    # OpenMP's threads otherwise burn the cores while they wait: on a busy machine that makes a
    # step several times slower, on an idle one it gains a few percent. Read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    from chatbench.cli import run

    sys.exit(run())


if __name__ == "__main__":
    main()
