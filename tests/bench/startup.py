"""How long people wait: `chatbench --help` beside a bare Typer app's, and `chatbench chat -p` to
its first token, and to its end, beside a bare `import torch`, each in a process of its own.

python tests/bench/startup.py [ROUNDS]

The model has the demo's shape (1M weights, 2,048 tokens) and is not taught: what it says does not
matter here.
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


def make_model(place: Path) -> Path:
    """A model folder of the demo's shape, with a tokenizer of the demo's corpus."""
    from chatbench.corpus.build import preprocess
    from chatbench.demo.corpus import prose
    from chatbench.model.folder import stored_weights, write_model
    from chatbench.model.transformer import GPT, ModelConfig, initialise
    from chatbench.settings import PreprocessSettings
    from chatbench.text.tokenizer import open_tokenizer

    texts = place / "texts.txt"
    texts.write_text("\n\n".join(prose(0, 2000)), encoding="utf-8")
    corpus = preprocess(
        PreprocessSettings(inputs=[str(texts)], out=str(place / "corpus"), vocab_size=2048)
    )
    tokenizer = open_tokenizer(corpus / "tokenizer")
    model = GPT(ModelConfig(tokenizer.vocab_size, 2, 128, 2, 2, 64, 384, 128))
    initialise(model, 0)
    write_model(place / "model", model.config, stored_weights(model), tokenizer)
    return place / "model"


def first_token(model: Path) -> None:
    """Until something comes; what follows is not waited for."""
    talk = ["chat", "-m", model, "-p", "茶 tea", "--max-tokens", "9"]
    command = [sys.executable, "-m", "chatbench", *talk]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        process.kill()


def whole_reply(model: Path) -> None:
    """One token, to the end of the process."""
    talk = ["chat", "-m", model, "-p", "茶 tea", "--max-tokens", "1"]
    command = [sys.executable, "-m", "chatbench", *talk]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


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
        model = make_model(Path(place))
        torch = [sys.executable, "-c", "import torch"]
        for what, call in (("the first token", first_token), ("the end", whole_reply)):
            ours, peer, ratio = compare(
                lambda call=call: call(model), lambda: subprocess.run(torch, check=True), rounds
            )
            print(
                f"chatbench chat -p to {what} {ours:.3f} s · import torch {peer:.3f} s · "
                f"{1 / ratio:.2f}× ({rounds} pairs)"
            )


if __name__ == "__main__":
    main()
