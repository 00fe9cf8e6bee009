"""With --pii mask nothing in the corpus folder is unmasked, wherever it came from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chatbench.corpus.build import preprocess
from chatbench.settings import PreprocessSettings

SECRETS = ("13800138000", "alice@example.org", "bob@example.org", "4012888888881881",
           "20 7946 0018", "138-0013-8000", "13900139000")  # fmt: skip


def test_no_secret_is_left_in_any_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "in"
    place.mkdir()
    deep: object = "alice@example.org"
    for _ in range(90):
        deep = [deep]
    rows = [
        {"prompt": f"第{n}个问题", "completion": "请打 13800138000", "phone": 13800138000,
         "card": 4012888888881881, "who": {"alice@example.org": ["bob@example.org"]}}
        for n in range(15)
    ]  # fmt: skip
    rows.append({"text": "  ", "note": "alice\u200b@example.org"})
    rows.append({"text": "deep", "x": deep})
    lines = [json.dumps(row) for row in rows]
    lines.append('{"text": "call me\\n13800138000 or alice\\u0040example.org')
    lines.append('{"odd": "13900139000"}')
    (place / "rows.jsonl").write_text("\n".join(lines) + "\n")
    (place / "Chat with +44 20 7946 0018.txt").write_text(
        "".join(
            f"[{day:02d}/11/2026, 09:0{n}:00] {who}: {text} {day}\n"
            for day in range(1, 9)
            for n, (who, text) in enumerate(
                (("Ann", "tea?"), ("+44 20 7946 0018", "yes"), ("Ann", "good"))
            )
        )
    )
    (place / "people.csv").write_text("Bob Miller,138-0013-8000,Berlin\nEve,138-0013-8000,Bonn\n")
    folder = preprocess(
        PreprocessSettings(
            inputs=[str(place)], out=str(tmp_path / "corpus"), vocab_size=300, workers=1,
            profile=False, pii="mask", tag_column=["phone"], show=3,
        )
    )  # fmt: skip
    told = capsys.readouterr().err
    texts = {path.name: path.read_bytes().decode(errors="replace")
             for path in folder.rglob("*") if path.is_file()}  # fmt: skip
    for secret in SECRETS:
        for name, text in {**texts, "the terminal": told}.items():
            assert secret not in text, f"{secret} stands in {name}"
    assert "[PHONE]" in texts["val.jsonl"] + texts["test.jsonl"]
    ledger = json.loads(texts["manifest.json"])["info"]["ledger"]
    lost = sum(ledger["dropped"].values()) + sum(ledger["failed"].values())
    assert ledger["read"] == ledger["kept"] + lost
