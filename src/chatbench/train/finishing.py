"""The finished model of a run: the best by validation, or the last where nothing is held out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from chatbench import console
from chatbench.errors import IntegrityError
from chatbench.model.folder import write_model
from chatbench.model.transformer import ModelConfig
from chatbench.model.weights import Deferred
from chatbench.storage import new_folder
from chatbench.text.tokenizer import Tokenizer
from chatbench.train import checkpoint
from chatbench.train.adapting import Write
from chatbench.train.checkpoint import TrainState
from chatbench.train.run import MODEL_KIND


def finish(
    run: Path, state: TrainState, asked: Mapping[str, object], config: ModelConfig,
    newest: Mapping[str, Tensor] | None, tokenizer: Tokenizer, provenance: dict[str, Any],
    write: Write | None = None,
) -> Path:  # fmt: skip
    """Write `model/` of a run and say which step is in it; returns its folder.

    `newest`: the weights of now, None to read them from their checkpoint; `asked`: the length that
    was asked for, noted in the manifest; `write`: as for `checkpoint.save`.
    Raises EnvironmentFault for disk trouble.
    """
    final = run / "model"
    step, weights = _chosen(run, state, newest)
    info = {"step": step, "trained": state.step, "asked": asked}
    # replace: a finished run that was asked for more has one already.
    with new_folder(final, MODEL_KIND, info, replace=True) as folder:
        (write or write_model)(folder, config, weights, tokenizer, provenance)
    console.say(f"{final} is step {step}, {_reason(state, step)}")
    return final


def _chosen(
    run: Path, state: TrainState, newest: Mapping[str, Tensor] | None
) -> tuple[int, Mapping[str, Tensor | Deferred]]:
    """Step and weights of the best validation, else of now."""
    if state.best_step not in (0, state.step):
        try:
            return state.best_step, checkpoint.weights_at(run, state.best_step)
        except IntegrityError as error:
            console.notice(f"{error}; so the last step takes the place of the best")
    return state.step, checkpoint.weights_at(run, state.step) if newest is None else newest


def _reason(state: TrainState, step: int) -> str:
    """Why the finished model is that step's."""
    if state.best_loss is None or state.val_loss is None:
        return "the last one"
    if step == state.step:
        return f"the last one, with validation loss {state.val_loss:.4f}"
    return (
        f"the best by validation: {state.best_loss:.4f}, against {state.val_loss:.4f} "
        f"at the last step, {state.step}"
    )
