"""JSON Lines → filtered, masked, near-deduplicated token files with datatrove's local executor.

python datatrove_pipeline.py TEXT.jsonl TOKENIZER.json OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
)
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.formatters import FTFYFormatter, PIIFormatter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
from datatrove.pipeline.writers import JsonlWriter

source, tokenizer_file, out = sys.argv[1:]
TASKS = 2
config = MinhashConfig()  # 14 buckets of 8 hashes, word 5-grams


def run(name: str, pipeline: list[object], tasks: int = TASKS) -> None:
    LocalPipelineExecutor(
        pipeline=pipeline, tasks=tasks, workers=min(tasks, 2), logging_dir=f"{out}/logs/{name}"
    ).run()


if __name__ == "__main__":
    folder = Path(source).parent
    run("clean", [
        JsonlReader(str(folder), glob_pattern=f"{Path(source).stem}-part*.jsonl"),
        FTFYFormatter(),
        GopherRepetitionFilter(), GopherQualityFilter(),
        C4QualityFilter(filter_no_terminal_punct=False),
        FineWebQualityFilter(),
        PIIFormatter(),
        JsonlWriter(f"{out}/clean", compression=None),
    ])  # fmt: skip
    run("signatures", [
        JsonlReader(f"{out}/clean"),
        MinhashDedupSignature(output_folder=f"{out}/signatures", config=config),
    ])  # fmt: skip
    run("buckets", [
        MinhashDedupBuckets(f"{out}/signatures", output_folder=f"{out}/buckets", config=config)
    ], tasks=config.num_buckets)  # fmt: skip
    run("cluster", [
        MinhashDedupCluster(f"{out}/buckets", output_folder=f"{out}/remove", config=config)
    ], tasks=1)  # fmt: skip
    run("tokens", [
        JsonlReader(f"{out}/clean"),
        MinhashDedupFilter(input_folder=f"{out}/remove"),
        DocumentTokenizer(f"{out}/tokens", tokenizer_name_or_path=tokenizer_file,
                          shuffle_documents=False),
    ])  # fmt: skip
