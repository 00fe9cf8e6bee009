"""One prompt, one reply: as text or JSON, repeatable, and nothing in it is obeyed."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from chat.piping import GREEDY, WILD, asker, say_always

from chatbench import console
from chatbench.chat.asking import json_line, sample_seeds
from chatbench.chat.pipe import answer
from chatbench.engine.engine import Piece
from chatbench.errors import UsageError
from chatbench.model.folder import OpenedModel, open_model
from chatbench.settings import SamplingSettings, replace

HOSTILE = "\x1b[2J\x1b]52;\x07\x9b\u202ea\u2066\r[b]x[/b]"


@pytest.fixture(scope="module")
def opened(base_run: Path) -> OpenedModel:
    return open_model(base_run, torch.device("cpu"))


def told(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


# -- as text -------------------------------------------------------------------------------------


def test_one_prompt_gets_one_reply_on_stdout(
    opened: OpenedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    say_always(monkeypatch, opened, "你好 there")
    assert answer(asker(opened, SamplingSettings()), "x") == 0
    assert capsys.readouterr().out == "你好 there\n"


@pytest.mark.parametrize("raw", [False, True])
def test_what_a_terminal_would_obey_is_shown_instead(
    opened: OpenedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    raw: bool,
) -> None:  # fmt: skip
    """Bytes of one character come in several tokens, so this is split everywhere too."""
    say_always(monkeypatch, opened, HOSTILE)
    answer(asker(opened, SamplingSettings(max_tokens=200), raw=raw), "x")
    shown = capsys.readouterr().out
    assert shown == "␛[2J␛]52;␇\\x9b\\u202ea\\u2066␍[b]x[/b]\n"


def test_a_prompt_that_is_too_long_is_refused_with_its_length(opened: OpenedModel) -> None:
    with pytest.raises(UsageError, match=r"the prompt has \d+ tokens and the model's context is"):
        answer(asker(opened), "long 很长 " * 100)


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_samples_follow_each_other_with_a_blank_line_between(
    opened: OpenedModel, capsys: pytest.CaptureFixture[str], rng: random.Random, rows: int
) -> None:
    """The same texts whatever was computed at once, and each is what its own seed gives alone."""
    seed, count = rng.randrange(1 << 40), rng.randint(2, 5)
    sampling = replace(WILD, seed=seed)
    capsys.readouterr()
    answer(asker(opened, sampling, rows, samples=count), "茶 tea")
    shown = capsys.readouterr().out
    alone = []
    for own in sample_seeds(seed, count):
        answer(asker(opened, replace(WILD, seed=own)), "茶 tea")
        alone.append(capsys.readouterr().out)
    assert shown == "\n".join(alone)


def test_samples_have_seeds_of_their_own_and_neighbours_share_none(rng: random.Random) -> None:
    seed = rng.randrange(1 << 62)
    first, second = sample_seeds(seed, 500), sample_seeds(seed + 1, 500)
    assert first[0] == seed
    assert first[:7] == sample_seeds(seed, 7)
    assert len({*first, *second}) == 1000
    assert sample_seeds(None, 3) != sample_seeds(None, 3)
    assert all(0 <= s < 1 << 53 for s in sample_seeds(None, 9)), "JSON readers keep them"


# -- as JSON -------------------------------------------------------------------------------------


def test_json_tells_what_was_used_and_the_seed_repeats_it(
    opened: OpenedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer(asker(opened, WILD), "雨 rain", as_json=True) == 0
    row = told(capsys)
    assert set(row) == {"text", "finish_reason", "usage", "timings", "seed", "model"}
    assert row["model"] == "m"
    assert row["finish_reason"] in ("stop", "length")
    usage, timings = row["usage"], row["timings"]
    assert set(usage) == {"prompt_tokens", "completion_tokens", "cached_tokens"}
    assert 0 <= usage["completion_tokens"] <= 12
    assert usage["prompt_tokens"] > usage["cached_tokens"] == 0
    assert 0 < timings["first_seconds"] <= timings["seconds"]
    speed = usage["completion_tokens"] / timings["seconds"]
    assert timings["tokens_per_second"] == pytest.approx(speed, rel=0.02)
    answer(asker(opened, replace(WILD, seed=row["seed"])), "雨 rain", as_json=True)
    again = told(capsys)
    assert (again["text"], again["seed"]) == (row["text"], row["seed"])


def test_several_samples_are_a_list(
    opened: OpenedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(asker(opened, replace(WILD, seed=3), samples=4), "ink 墨", as_json=True)
    rows = told(capsys)
    assert [row["seed"] for row in rows] == sample_seeds(3, 4)
    assert len({row["text"] for row in rows}) > 1


def test_raw_text_goes_on_in_json_too(
    opened: OpenedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(asker(opened, raw=True, samples=2), "The shop 小店", as_json=True)
    first, second = told(capsys)
    prefix = len(opened.tokenizer.text_prefix)
    expected = prefix + len(opened.tokenizer.encode("The shop 小店"))
    assert first["usage"]["prompt_tokens"] == expected
    assert first["text"] == second["text"], "the likeliest token is the same for any seed"


def test_log_probabilities_have_the_shape_of_openai(
    opened: OpenedModel, capsys: pytest.CaptureFixture[str], rng: random.Random
) -> None:
    """Against the model's own logits, in float64, of one pass over prompt and reply."""
    capsys.readouterr()
    top = rng.randint(0, 5)
    sampling = replace(WILD, logprobs=top, seed=rng.randrange(1000), max_tokens=6)
    ours = asker(opened, sampling, raw=True)
    request = ours.text("tea 茶").requests[0]
    (completion,) = ours.engine.complete([request])
    answer(ours, "tea 茶", as_json=True)
    content = told(capsys)["logprobs"]["content"]
    ids = torch.tensor([[*request.ids, *completion.ids]])
    with torch.inference_mode():
        logits = opened.model.logits(opened.model(ids))[0, :, : opened.tokenizer.vocab_size]
    expected = logits.double().log_softmax(-1)[len(request.ids) - 1 : -1]
    assert len(content) == len(completion.ids)
    for token, id, row in zip(content, completion.ids, expected, strict=True):
        assert set(token) == {"token", "bytes", "logprob", "top_logprobs"}
        assert bytes(token["bytes"]) == opened.tokenizer.token_bytes[id]
        assert math.isclose(token["logprob"], row[id], rel_tol=1e-4, abs_tol=1e-4)
        likeliest = row.topk(top).values.tolist()
        assert [t["logprob"] for t in token["top_logprobs"]] == pytest.approx(likeliest, abs=1e-4)
        for other in token["top_logprobs"]:
            assert set(other) == {"token", "bytes", "logprob"}


def test_json_escapes_what_a_terminal_obeys_and_keeps_it(
    opened: OpenedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    say_always(monkeypatch, opened, HOSTILE)
    answer(asker(opened, SamplingSettings(max_tokens=200)), "x", as_json=True)
    shown = capsys.readouterr().out
    assert console.visible(shown) == shown
    assert json.loads(shown)["text"] == HOSTILE


def test_a_line_of_json_means_what_plain_json_means(rng: random.Random) -> None:
    codes = [*range(0x20), 0x7F, 0x85, 0x9B, 0x2028, 0x202E, 0x2066, 0x61, 0x8336, 0x1F600]
    for _ in range(300):
        value = {"text": "".join(chr(rng.choice(codes)) for _ in range(20)), "n": [1, None]}
        line = json_line(value)
        assert json.loads(line) == value
        assert console.visible(line) == line
        assert "\n" not in line


# -- Ctrl-C --------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_json", [False, True])
def test_an_interrupt_leaves_what_is_finished(
    opened: OpenedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    as_json: bool,
) -> None:  # fmt: skip
    """The signal comes while the third of four samples is under way, one at a time."""
    import signal

    ours = asker(opened, replace(GREEDY, max_tokens=6), rows=1, samples=4)
    answer(ours, "tea", as_json=True)
    whole = json.loads(capsys.readouterr().out)[0]["text"]
    answer(ours, "tea")
    undisturbed = capsys.readouterr().out
    run = ours.engine.run

    def interrupting(*given: Any) -> Any:
        for event in run(*given):
            yield event
            if isinstance(event, Piece) and event.key == 2:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ours.engine, "run", interrupting)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        answer(ours, "tea", as_json=as_json)
    assert signal.getsignal(signal.SIGINT) is before
    shown = capsys.readouterr().out
    if as_json:
        assert [row["text"] for row in json.loads(shown)] == [whole, whole]
    else:
        assert shown.endswith("\n")
        assert undisturbed.startswith((shown, shown[:-1]))
        assert 2 * len(whole) < len(shown) < len(undisturbed)
