"""TensorBoard's own reader finds what was written, once, also after a resume."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from chatbench.train.events import Events, open_events, tag_of
from chatbench.train.monitor import Monitor
from chatbench.train.plan import Plan

accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
PLAN = Plan(48, 4, 4, 1e-3, 10, None, 2, 2, 5)


def read(folder: Path) -> Any:
    events = accumulators.EventAccumulator(str(folder))
    events.Reload()
    return events


def scalars(folder: Path, tag: str) -> dict[int, float]:
    found = [(event.step, event.value) for event in read(folder).Scalars(tag)]
    assert len(dict(found)) == len(found)
    return dict(found)


@pytest.mark.parametrize(
    ("name", "tag"),
    [("loss", "loss/train"), ("val_loss", "loss/val"), ("seconds_data", "seconds/data"),
     ("learning_rate", "optimisation/learning_rate"), ("grad_norm", "optimisation/grad_norm")],
)  # fmt: skip
def test_what_belongs_together_shares_a_group(name: str, tag: str) -> None:
    assert tag_of(name) == tag


def test_a_resume_drops_what_came_after_its_checkpoint(tmp_path: Path, rng: random.Random) -> None:
    kept = rng.randint(1, 5)
    told = {step: rng.random() for step in range(1, 10)}
    for start, last in ((0, 7), (kept, 9)):
        events = Events(tmp_path, start)
        for step in range(start + 1, last + 1):
            value = told[step] if start or step <= kept else -1.0
            events.scalars(step, {"loss": value, "skipped": "loss is nan", "step": step})
        events.close()
        # Event files are read in the order of the seconds in their names.
        ended = int(time.time())
        while int(time.time()) == ended:
            time.sleep(0.01)
    assert scalars(tmp_path / "tensorboard", "loss/train") == pytest.approx(told, rel=1e-6)
    assert set(read(tmp_path / "tensorboard").Tags()["scalars"]) == {"loss/train"}


def test_references_are_runs_of_their_own_beside_the_validation(tmp_path: Path) -> None:
    events = Events(tmp_path, 0)
    values = {"ngram_bits_per_byte": 2.25, "uniform_bits_per_byte": 4.5, "uniform_loss": 9.0}
    for step in (3, 6):
        events.references(step, values)
    events.close()
    folder = tmp_path / "tensorboard"
    assert scalars(folder / "n-gram", "bits_per_byte/val") == {3: 2.25, 6: 2.25}
    assert scalars(folder / "uniform", "bits_per_byte/val") == {3: 4.5, 6: 4.5}
    assert scalars(folder / "uniform", "loss/val") == {3: 9.0, 6: 9.0}


def test_samples_are_text_that_is_not_markdown(tmp_path: Path) -> None:
    events = Events(tmp_path, 0)
    events.text(5, "茶是什么？", "# 一种饮料\n<b>x</b>")
    events.close()
    found = read(tmp_path / "tensorboard")
    (tag,) = found.Tags()["tensors"]
    assert "茶是什么？" in tag
    (event,) = found.Tensors(tag)
    assert event.step == 5
    assert event.tensor_proto.string_val[0].decode() == "    # 一种饮料\n    <b>x</b>"


def test_histograms_hold_every_weight_and_gradient(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.randn(8, 5))
    weight.grad = torch.randn(8, 5)
    broken = nn.Parameter(torch.tensor([1.0, float("nan")]))
    with Monitor(tmp_path, PLAN, {}, 0, tensorboard=True, histograms=3) as monitor:
        assert [step for step in range(1, 10) if monitor.wants_histograms(step)] == [3, 6, 9]
        monitor.histograms(3, {"a.weight": weight, "b": broken})
    found = read(tmp_path / "tensorboard")
    assert set(found.Tags()["histograms"]) == {"weights/a.weight", "gradients/a.weight"}
    for tag, values in (("weights/a.weight", weight.detach()), ("gradients/a.weight", weight.grad)):
        (event,) = found.Histograms(tag)
        assert event.step == 3
        held = event.histogram_value
        assert (held.num, held.min, held.max) == (40, values.min().item(), values.max().item())
        assert held.sum == pytest.approx(np.float64(values.double().sum().item()), abs=1e-4)


def test_without_histograms_asked_for_none_are_due(tmp_path: Path) -> None:
    with Monitor(tmp_path, PLAN, {}, 0, tensorboard=True) as monitor:
        assert not any(monitor.wants_histograms(step) for step in range(20))


def test_without_tensorboard_there_is_no_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert open_events(tmp_path, 0) is None
