"""One kernel at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from chatbench.model.kernels.choice import BACKENDS, FORCE
from chatbench.model.kernels.task import Task


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], AbstractContextManager[None]]:
    """`with only(name)`: calls go to that kernel, and at least one must."""

    @contextmanager
    def force(name: str) -> Any:
        backend, calls = BACKENDS[name], []

        def counted(task: Task) -> Any:
            calls.append(task)
            return backend.run(task)

        with monkeypatch.context() as patch:
            patch.setenv(FORCE, name)
            patch.setitem(BACKENDS, name, backend._replace(run=counted))
            yield
        assert calls, f"{name} was not used"

    return force
