"""The same for TensorBoard: events by tag, and reference lines as runs of their own."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

FOLDER = "tensorboard"
_TAGS = {
    "loss": "loss/train",
    "val_loss": "loss/val",
    "val_bits_per_byte": "bits_per_byte/val",
    "reward": "reward/train",
    "val_reward": "reward/val",
    "tokens": "progress/tokens",
    "seconds": "progress/seconds",
    "tokens_per_second": "speed/tokens_per_second",
    "mfu": "speed/mfu",
    "memory": "speed/memory",
}
# What learning from rewards says of the replies that the model gave.
_OF_REPLIES = frozenset(
    ("reward_spread", "silent_groups", "reply_tokens", "truncated", "entropy", "kl", "clipped")
)
# Reference → (run it is drawn as, tag it is drawn beside)
_LINES = {
    "ngram_bits_per_byte": ("n-gram", "bits_per_byte/val"),
    "uniform_bits_per_byte": ("uniform", "bits_per_byte/val"),
    "uniform_loss": ("uniform", "loss/val"),
}


def tag_of(name: str) -> str:
    """Where TensorBoard shows a value: what belongs together shares the part before the slash."""
    if name.startswith("seconds_"):
        return f"seconds/{name.removeprefix('seconds_')}"
    if name.removeprefix("val_") in _OF_REPLIES:
        return f"replies/{name}"
    return _TAGS.get(name, f"optimisation/{name}")


class Events:
    """Writers below `run/tensorboard`. A resume drops what was written after its checkpoint."""

    def __init__(self, run: Path, start: int) -> None:
        self._folder = run / FOLDER
        self._purge = start + 1 if start else None
        self._writers: dict[str, Any] = {}

    def _writer(self, name: str = "") -> Any:
        if name not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            folder = str(self._folder / name)
            self._writers[name] = SummaryWriter(folder, purge_step=self._purge)
        return self._writers[name]

    def scalars(self, step: int, values: Mapping[str, object]) -> None:
        for name, value in values.items():
            if isinstance(value, int | float) and name != "step":
                self._writer().add_scalar(tag_of(name), value, step)

    def references(self, step: int, values: Mapping[str, float]) -> None:
        """One more point of each reference line."""
        for name, (line, tag) in _LINES.items():
            if name in values:
                self._writer(line).add_scalar(tag, values[name], step)

    def text(self, step: int, prompt: str, text: str) -> None:
        """A sample, as preformatted text: TensorBoard would read it as Markdown."""
        lines = text.splitlines() or [""]
        self._writer().add_text(prompt, "\n".join(f"    {line}" for line in lines), step)

    def histograms(self, step: int, parameters: Mapping[str, Tensor]) -> None:
        """Of each parameter and its gradient; of those that are all finite."""
        for name, parameter in parameters.items():
            for kind, values in (("weights", parameter.detach()), ("gradients", parameter.grad)):
                if values is not None and bool(values.isfinite().all()):
                    self._writer().add_histogram(f"{kind}/{name}", values.float().cpu(), step)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


def open_events(run: Path, start: int) -> Events | None:
    """None where TensorBoard is not installed."""
    return Events(run, start) if importlib.util.find_spec("tensorboard") else None
