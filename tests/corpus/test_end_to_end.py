"""Every accepted form goes through the whole of preprocess, from the file to verified shards."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chatbench.corpus.build import preprocess
from chatbench.corpus.shards import open_corpus
from chatbench.settings import PreprocessSettings
from chatbench.text.tokenizer import train_tokenizer

SAMPLES = Path(__file__).parent / "samples"
ROWS = [
    {"prompt": f"Question {n}? 第{n}个问题？", "completion": f"Answer {n}。"} for n in range(12)
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def check(place: Path, out: Path, kept: int | None = None, **settings: Any) -> None:
    """Preprocess `place` and account for what came of it."""
    given = {"vocab_size": 300, "profile": False, "workers": 1, **settings}
    folder = preprocess(PreprocessSettings(inputs=[str(place)], out=str(out), **given))
    corpus = open_corpus(folder)
    ledger = corpus.manifest.info["ledger"]
    lost = sum(ledger["dropped"].values()) + sum(ledger["failed"].values())
    assert ledger["read"] == ledger["kept"] + lost
    splits = [corpus.split(name) for name in ("train", "val", "test")]
    assert sum(map(len, splits)) == ledger["kept"] > 0
    assert all(split.tokens >= len(split) for split in splits)
    if kept is not None:
        assert (ledger["kept"], lost) == (kept, 0)
    sources = [json.loads(line) for line in (folder / "sources.jsonl").read_bytes().splitlines()]
    assert all(source["verdict"] for source in sources)


@pytest.mark.parametrize("name", sorted(path.name for path in SAMPLES.iterdir()))
def test_each_sample(tmp_path: Path, name: str) -> None:
    check(SAMPLES / name, tmp_path / "corpus")


@pytest.mark.parametrize("form", ["parquet", "feather", "stream", "dataset"])
def test_columnar_files(tmp_path: Path, form: str) -> None:
    pa = pytest.importorskip("pyarrow")
    table = pa.Table.from_pylist(ROWS)
    place = tmp_path / "in"
    place.mkdir()
    if form == "parquet":
        from pyarrow import parquet

        parquet.write_table(table, place / "rows.parquet")
    elif form == "feather":
        from pyarrow import feather

        feather.write_feather(table, place / "rows.arrow")
    else:
        with pa.ipc.new_stream(place / "data-00000-of-00001.arrow", table.schema) as writer:
            writer.write_table(table)
    if form == "dataset":
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
        (place / "state.json").write_text(json.dumps(state))
        (place / "dataset_info.json").write_text("{}")
    check(place, tmp_path / "corpus", kept=len(ROWS))


@pytest.mark.parametrize("form", ["gz", "bz2", "xz", "zst", "zip", "tar.gz", "gz in zip"])
def test_compressed_files_and_archives(tmp_path: Path, form: str) -> None:
    import bz2
    import lzma

    data, place = LINES.encode(), tmp_path / "in"
    place.mkdir()
    if form == "zip" or form == "gz in zip":
        with zipfile.ZipFile(place / "rows.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            packed = form == "gz in zip"
            archive.writestr("deep/rows.jsonl" + ".gz" * packed,
                             gzip.compress(data) if packed else data)  # fmt: skip
    elif form == "tar.gz":
        with tarfile.open(place / "rows.tar.gz", "w:gz") as archive:
            entry = tarfile.TarInfo("rows.jsonl")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    elif form == "zst":
        zstandard = pytest.importorskip("zstandard")
        (place / "rows.jsonl.zst").write_bytes(zstandard.compress(data))
    else:
        pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[form]
        (place / f"rows.jsonl.{form}").write_bytes(pack(data))
    check(place, tmp_path / "corpus", kept=len(ROWS))


@pytest.mark.parametrize(
    "codec", ["utf-8-sig", "utf-16", "utf-32", "gb18030", "big5", "shift_jis", "cp1252"]
)
def test_encodings(tmp_path: Path, codec: str) -> None:
    text = {
        "big5": "這是一個很長的句子，用來測試編碼。我們每天都喝茶，也常常看書。",
        "shift_jis": "これは文字コードを調べるための長い文章です。毎日お茶を飲みます。",
        "cp1252": "Le café est déjà prêt, où êtes-vous ? C’est l’été à Genève.",
    }.get(codec, "这是一个很长的句子，用来测试编码。我们每天都喝茶，也常常看书。")
    (tmp_path / "in.txt").write_bytes("\n\n".join([text] * 3).encode(codec))
    check(tmp_path / "in.txt", tmp_path / "corpus", kept=1, val_fraction=0, test_fraction=0)
    corpus = open_corpus(tmp_path / "corpus")
    assert corpus.tokenizer.decode(corpus.split("train").ids(0)) == "\n\n".join([text] * 3)


def test_token_ids_with_their_tokenizer(tmp_path: Path) -> None:
    tokenizer = train_tokenizer([LINES], 400)
    tokenizer.save(tmp_path / "tokenizer")
    ids = [number for row in ROWS for number in (*tokenizer.encode(row["prompt"]),
                                                 tokenizer.end_of_text)]  # fmt: skip
    np.array(ids, np.uint16).tofile(tmp_path / "train.bin")
    check(tmp_path / "train.bin", tmp_path / "corpus", kept=len(ROWS),
          bin_tokenizer=str(tmp_path / "tokenizer" / "tokenizer.json"))  # fmt: skip
