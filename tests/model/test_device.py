"""Devices and number formats by name."""

from __future__ import annotations

import pytest
import torch

from chatbench.errors import EnvironmentFault, UsageError
from chatbench.model.device import dtype_name, pick_device, pick_dtype

CPU = torch.device("cpu")


def test_auto_takes_an_accelerator_only_where_there_is_one() -> None:
    if torch.cuda.is_available():
        expected = "cuda"
    else:
        expected = "mps" if torch.backends.mps.is_available() else "cpu"
    assert pick_device("auto").type == expected


def test_the_cpu_is_always_there() -> None:
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize("name", ["", "gpu", "cuda:x", "quantum"])
def test_a_name_that_is_no_device_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match=name or "not a device") as caught:
        pick_device(name)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["cuda", "mps", "cuda:99", "meta", "xpu"])
def test_a_device_that_is_not_here_is_an_environment_fault(name: str) -> None:
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if here.get(name):
        pytest.skip(f"{name} is here")
    with pytest.raises(EnvironmentFault, match=name) as caught:
        pick_device(name)
    assert caught.value.exit_code == 5
    assert "--device cpu" in str(caught.value)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_a_number_format_that_is_named_is_taken(name: str) -> None:
    assert dtype_name(pick_dtype(name, CPU)) == name


def test_auto_picks_one_of_the_two() -> None:
    assert pick_dtype("auto", CPU) in (torch.float32, torch.bfloat16)


@pytest.mark.gpu
def test_the_accelerator_computes() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no accelerator here")
    device = pick_device("auto")
    assert torch.ones(2, device=device).sum() == 2
    assert pick_dtype("auto", device) in (torch.float32, torch.bfloat16)
