"""python -m chatbench and the console script."""

from __future__ import annotations

import os
import sys


def main() -> None:
    # OpenMP's threads otherwise burn the cores while they wait: on a busy machine that makes a
    # step several times slower, on an idle one it gains a few percent. Read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    for stream in (sys.stdout, sys.stderr):
        # A terminal of another encoding shows escapes instead of ending the program.
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    from chatbench.cli import run

    sys.exit(run())


if __name__ == "__main__":
    main()
