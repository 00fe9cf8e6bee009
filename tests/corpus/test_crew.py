"""Worker processes: order, errors, and that none outlives the program that hired it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chatbench.corpus.crew import Crew, WorkerLost
from chatbench.errors import DataError, EnvironmentFault

HERE = "crew_tasks"


@pytest.fixture(autouse=True)
def _tasks_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(here)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_results_come_back_in_the_order_of_the_arguments(size: int) -> None:
    with Crew(size) as crew:
        found = list(crew.run(f"{HERE}:slow_square", "job", range(7)))
    assert found == [["job", n * n] for n in range(7)]


def test_a_crew_runs_several_rounds_with_the_same_workers() -> None:
    with Crew(2) as crew:
        first = set(crew.run(f"{HERE}:process", "", range(6)))
        second = set(crew.run(f"{HERE}:process", "", range(6)))
    assert first == second
    assert os.getpid() not in first


def test_one_argument_needs_no_process() -> None:
    with Crew(4) as crew:
        assert list(crew.run(f"{HERE}:process", "", [0])) == [os.getpid()]


@pytest.mark.parametrize("size", [1, 2])
def test_a_users_mistake_in_a_worker_is_the_same_error_here(size: int) -> None:
    with Crew(size) as crew, pytest.raises(DataError) as caught:
        list(crew.run(f"{HERE}:mistaken", "", range(3)))
    assert caught.value.message == "row 1 is bad"
    assert caught.value.hint == "mend it"


def test_a_bug_in_a_worker_shows_its_trace() -> None:
    with Crew(2) as crew, pytest.raises(RuntimeError, match="ZeroDivisionError"):
        list(crew.run(f"{HERE}:broken", "", range(3)))


def test_a_killed_worker_is_named_and_does_not_hang() -> None:
    with Crew(2) as crew, pytest.raises(EnvironmentFault, match="signal 9"):
        list(crew.run(f"{HERE}:suicidal", "", range(3)))


def test_what_a_task_prints_does_not_disturb_the_answers() -> None:
    with Crew(2) as crew:
        assert list(crew.run(f"{HERE}:talkative", "", range(4))) == [0, 1, 2, 3]


def test_workers_die_with_the_program_even_when_it_is_killed(tmp_path: Path) -> None:
    code = (
        "from chatbench.corpus.crew import Crew\n"
        f"with Crew(2) as crew: list(crew.run('{HERE}:note_and_sleep', {str(tmp_path)!r}, [0, 1]))"
    )
    program = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 30
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert len(pids) == 2
    program.send_signal(signal.SIGKILL)
    program.wait()
    deadline = time.monotonic() + 30
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, pids))


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize("size", [1, 2])
def test_a_full_disk_in_a_task_is_no_bug(size: int) -> None:
    with Crew(size) as crew, pytest.raises((EnvironmentFault, OSError), match="No space left"):
        list(crew.run(f"{HERE}:out_of_room", "", range(3)))


def test_a_worker_that_died_while_idle_does_not_hide_why() -> None:
    with Crew(2) as crew:
        crew.hire()
        (first, *_) = crew.run(f"{HERE}:process", "", range(2))
        os.kill(first, signal.SIGKILL)
        with pytest.raises(WorkerLost, match="signal 9"):
            list(crew.run(f"{HERE}:process", "", range(4)))


def test_a_place_whose_name_is_not_utf_8_reaches_the_worker() -> None:
    place = os.fsdecode(b"p\xff")
    with Crew(2) as crew:
        found = list(crew.run(f"{HERE}:name_of", place, range(3)))
    assert found == [repr(place)] * 3
