"""How long `chatbench --help` takes beside a bare Typer app's --help, each a process of its own.

python tests/bench/startup.py [ROUNDS]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from pairs import compare

BARE = """
import typer
app = typer.Typer()
@app.command()
def one(name: str = "x", count: int = 1) -> None: "Do one."
@app.command()
def two(name: str = "x", count: int = 1) -> None: "Do two."
app()
"""


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with tempfile.TemporaryDirectory() as place:
        bare = Path(place, "bare.py")
        bare.write_text(BARE)

        def help_of(*program: str) -> None:
            subprocess.run([sys.executable, *program, "--help"], check=True, capture_output=True)

        ours, peer, ratio = compare(
            lambda: help_of("-m", "chatbench"), lambda: help_of(str(bare)), rounds
        )
    print(
        f"chatbench --help {ours:.3f} s · bare Typer {peer:.3f} s · "
        f"{1 / ratio:.2f}× ({rounds} pairs)"
    )


if __name__ == "__main__":
    main()
