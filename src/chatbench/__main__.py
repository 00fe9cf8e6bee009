"""python -m chatbench and the console script."""

from __future__ import annotations

import os
import sys


def main() -> None:
    # OpenMP's threads otherwise burn the cores while they wait: on a busy machine that makes a
    # step several times slower, on an idle one it gains a few percent. Read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # Where a standard stream is closed, no file that is opened later may take its number.
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(spare)
    if sys.stdout is not None and not sys.stdout.isatty() and hasattr(sys.stdout, "reconfigure"):
        # In pipes and files text is UTF-8, whatever the locale says.
        sys.stdout.reconfigure(encoding="utf-8")
    for stream in (sys.stdout, sys.stderr):
        # A terminal of another encoding shows escapes instead of ending the program.
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    from chatbench.cli import run

    sys.exit(run())


if __name__ == "__main__":
    main()
