"""Every setting a person can give: name, type, range, default, help and flags in one line each.

The command line, the environment, the TOML file, `--print-config` and the run folder's
`config.toml` all read this file. A setting without `flag(...)` is reached through a TOML file or
`--set section.name=value`.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field


def flag(help: str, *names: str, panel: str = "Main", **bounds: Any) -> Meta:
    """Say what a setting is; `names` are short forms and aliases besides `--its-name`, `bounds`
    its range as ge, gt, le, lt."""
    return Meta(description=help, extra={"names": names, "panel": panel}, **bounds)


def knob(help: str, **bounds: Any) -> Meta:
    """A setting for the TOML file and --set only."""
    return Meta(description=help, **bounds)


LARGEST_SEED = 2**62


class Settings(Struct, forbid_unknown_fields=True, kw_only=True):
    """Base of all settings: unknown keys are errors."""


class PreprocessSettings(Settings):
    """What `preprocess` reads, cleans, leaves out and splits, and the tokenizer it trains."""

    out: Annotated[str, flag("Corpus folder to write (required)", "-o")]
    inputs: Annotated[list[str], knob("Files, folders, globs; - is stdin")] = field(
        default_factory=list
    )
    overwrite: Annotated[bool, flag("Replace a corpus that is already there")] = False
    workers: Annotated[int, flag("Processes; 0 takes one for each core", ge=0, le=1024)] = 0
    strict: Annotated[bool, flag("End with exit 3 when any record cannot be read")] = False
    profile: Annotated[bool, flag("Collocations and an n-gram baseline in the report (NLTK)")] = (
        True
    )
    show: Annotated[int, flag("Show this many examples, token by token", ge=0, le=1000)] = 0
    format: Annotated[str, flag("Form of the files; auto judges by content", panel="Reading")] = (
        "auto"
    )
    encoding: Annotated[
        str, flag("Character encoding; auto finds it for each file", panel="Reading")
    ] = "auto"
    map: Annotated[
        list[str],
        flag("Column for a part of a row, such as user=question; repeatable", panel="Reading"),
    ] = field(default_factory=list)
    bin_tokenizer: (
        Annotated[str, flag("tokenizer.json that nanoGPT .bin files were made with",
                            panel="Reading")]
        | None
    ) = None  # fmt: skip
    passage_chars: Annotated[
        int,
        flag("Cut longer texts at paragraphs into documents of about this length", ge=200,
             panel="Reading"),
    ] = 8000  # fmt: skip
    tag_column: Annotated[
        list[str],
        flag("Columns that become control text, such as style,topic", panel="Reading"),
    ] = field(default_factory=list)
    tag_dropout: Annotated[
        float, flag("Share of documents that go without a given tag", panel="Reading", ge=0, le=1)
    ] = 0.1
    repair: Annotated[
        bool,
        flag("Mend mojibake, control and zero-width characters, line ends", panel="Cleaning"),
    ] = True
    lang: Annotated[
        list[str], flag("Keep only these languages, such as en,zh", panel="Cleaning")
    ] = field(default_factory=list)
    quality: Annotated[
        bool, flag("Drop texts that the Gopher, C4 and FineWeb rules reject", panel="Cleaning")
    ] = False
    min_fluency: (
        Annotated[
            float,
            flag("Drop texts to which an n-gram model of the corpus gives a lower percentile",
                 panel="Cleaning", gt=0, lt=100),
        ]
        | None
    ) = None  # fmt: skip
    block: Annotated[
        list[str],
        flag("File of words and phrases; texts that hold one are dropped", panel="Cleaning"),
    ] = field(default_factory=list)
    screen: (
        Annotated[str, flag("Folder of a trained screen; texts that it rejects are dropped",
                            panel="Cleaning")]
        | None
    ) = None  # fmt: skip
    pii: Annotated[
        Literal["off", "flag", "mask"],
        flag("Personal data: count it, or replace it by placeholders", panel="Cleaning"),
    ] = "off"
    dedup: Annotated[
        Literal["off", "exact", "near"],
        flag("Drop documents seen before, or nearly", panel="Duplicates and leaks"),
    ] = "exact"
    near_threshold: Annotated[
        float,
        flag("Similarity (Jaccard, of word 5-grams) from which two texts are near-duplicates",
             panel="Duplicates and leaks", ge=0.3, le=1),
    ] = 0.8  # fmt: skip
    split_by: Annotated[
        Literal["cluster", "document"],
        flag("Keep near-duplicates in one split, or look at each document alone",
             panel="Duplicates and leaks"),
    ] = "cluster"  # fmt: skip
    against: Annotated[
        list[str],
        flag(
            "Test set to keep out: documents that share a 13-gram with it are dropped",
            panel="Duplicates and leaks",
        ),
    ] = field(default_factory=list)
    contamination: Annotated[
        Literal["off", "report", "drop"],
        flag("13-grams that training shares with validation and test: count them, or drop the"
             " training documents", panel="Duplicates and leaks"),
    ] = "report"  # fmt: skip
    val_fraction: Annotated[
        float, flag("Share of documents for validation", panel="Split", ge=0, lt=1)
    ] = 0.05
    test_fraction: Annotated[
        float, flag("Share of documents for the test", panel="Split", ge=0, lt=1)
    ] = 0.05
    tokenizer: (
        Annotated[str, flag("Use the tokenizer of this model or corpus folder", panel="Tokenizer")]
        | None
    ) = None
    vocab_size: Annotated[
        int,
        flag("Entries of a tokenizer trained or extended here", panel="Tokenizer", ge=260,
             le=1 << 20),
    ] = 4096  # fmt: skip
    extend_vocab: Annotated[
        bool,
        flag("Add entries for this text to --tokenizer, up to --vocab-size", panel="Tokenizer"),
    ] = False
    max_record_bytes: Annotated[
        int, knob("Longer lines and rows are failures, not records", ge=1 << 10, le=1 << 30)
    ] = 1 << 24
    max_expansion: Annotated[
        int, knob("A compressed file that grows by more than this factor is refused", ge=2)
    ] = 200


class ScreenSettings(Settings):
    """Labelled examples, and the screen that is learned from them."""

    data: Annotated[str, flag("Table or JSON Lines with a text and a label (required)", "-d")]
    out: Annotated[str, flag("Folder of the screen to write (required)", "-o")]
    bad_label: Annotated[
        list[str], flag("Label of bad examples; repeatable, each is then a category")
    ] = field(default_factory=lambda: ["1"])
    good_label: (
        Annotated[str, flag("Label of good examples (default: every other label)")] | None
    ) = None
    max_false_positives: Annotated[
        float, flag("Share of good texts that may be rejected", gt=0, lt=1)
    ] = 0.01
    seed: Annotated[int, flag("Seed of the held-out examples", ge=0, le=LARGEST_SEED)] = 0
    overwrite: Annotated[bool, flag("Replace a screen that is already there")] = False
    format: Annotated[str, flag("Form of the file; auto judges by content", panel="Reading")] = (
        "auto"
    )
    encoding: Annotated[str, flag("Character encoding; auto finds it", panel="Reading")] = "auto"
    map: Annotated[
        list[str], flag("Column for a part, such as text=comment; repeatable", panel="Reading")
    ] = field(default_factory=list)


class ModelSettings(Settings):
    """Shape of a model trained from nothing; explicit numbers win over the size."""

    size: Annotated[
        Literal["tiny", "small", "base"],
        flag("Shape by name: tiny about 3M, small about 13M, base about 75M parameters and the"
             " embedding", panel="Model"),
    ] = "tiny"  # fmt: skip
    n_layers: Annotated[int, flag("Number of blocks", "--n-layer", panel="Model", ge=1)] | None = (
        None
    )
    hidden_size: (
        Annotated[int, flag("Width of the residual stream", "--n-embd", panel="Model", ge=8)] | None
    ) = None
    n_heads: Annotated[int, flag("Query heads", "--n-head", panel="Model", ge=1)] | None = None
    n_kv_heads: Annotated[int, knob("Key and value heads", ge=1)] | None = None
    head_dim: Annotated[int, knob("Width of one head", ge=2)] | None = None
    ffn_size: Annotated[int, knob("Width of the feed-forward layer", ge=8)] | None = None
    rope_theta: Annotated[float, knob("Base of the rotary positions", gt=1)] = 10_000.0
    tie_embeddings: Annotated[bool, knob("Share input and output embeddings")] = True


class TrainSettings(Settings):
    """How long, how much at once, and how often to look."""

    minutes: (
        Annotated[
            float,
            flag(
                "Stop after this many minutes (without any limit: pretrain 10)",
                "--max-time",
                panel="Length",
                gt=0,
            ),
        ]
        | None
    ) = None
    steps: Annotated[
        int,
        flag("Stop after this many steps", "--max-steps", "--max-iters", "--iters",
             panel="Length", ge=1),
    ] | None = None  # fmt: skip
    tokens: (
        Annotated[int, flag("Stop after this many tokens", "--max-tokens", panel="Length", ge=1)]
        | None
    ) = None
    epochs: (
        Annotated[
            float,
            flag(
                "Stop after this many passes (without any limit: finetune 3)",
                "--num-train-epochs",
                panel="Length",
                gt=0,
            ),
        ]
        | None
    ) = None
    seq_len: (
        Annotated[
            int,
            flag(
                "Tokens a training row holds; in pretrain also the model's context",
                "--block-size",
                "--max-seq-length",
                ge=8,
            ),
        ]
        | None
    ) = None
    batch_tokens: (
        Annotated[
            int,
            flag("Tokens per step (default: by size)", "--total-batch-tokens", panel="Batch", ge=8),
        ]
        | None
    ) = None
    micro_batch: Annotated[
        int,
        flag("Rows computed at once; accumulation follows", "-b", "--batch-size",
             "--per-device-train-batch-size", panel="Batch", ge=1),
    ] | None = None  # fmt: skip
    log_every: Annotated[int, knob("Steps between lines of metrics.jsonl", ge=1)] = 10
    eval_every: (
        Annotated[int, flag("Steps between validations", "--eval-interval", panel="Cadence", ge=1)]
        | None
    ) = None
    sample_every: Annotated[int, knob("Steps between samples", ge=1)] | None = None
    save_every: (
        Annotated[int, flag("Steps between checkpoints", "--save-steps", panel="Cadence", ge=1)]
        | None
    ) = None
    save_minutes: Annotated[float, knob("Minutes between checkpoints besides", gt=0)] = 5.0
    keep: Annotated[int, flag("Checkpoints kept", "--save-total-limit", panel="Cadence", ge=1)] = 2
    eval_tokens: Annotated[int, knob("Validation tokens looked at each time", ge=1)] = 65_536
    prompts: Annotated[list[str], knob("What the samples continue or answer")] = field(
        default_factory=list
    )
    tensorboard: Annotated[bool, knob("Write TensorBoard events when it is installed")] = True


class OptimSettings(Settings):
    """How the weights move."""

    optimizer: Annotated[
        Literal["muon", "adamw"],
        flag("muon for the hidden matrices and AdamW for the rest, or AdamW for all",
             panel="Optimiser"),
    ] = "muon"  # fmt: skip
    learning_rate: (
        Annotated[
            float, flag("Peak learning rate (default: by width)", "--lr", panel="Optimiser", gt=0)
        ]
        | None
    ) = None
    weight_decay: Annotated[float, flag("Decay of the matrices", panel="Optimiser", ge=0)] = 0.1
    warmup: Annotated[float, knob("Share of the run that warms up", ge=0, le=1)] = 0.02
    decay: Annotated[float, knob("Share of the run that decays", ge=0, le=1)] = 0.6
    min_lr: Annotated[float, knob("Rate at the end, as a share of the peak", ge=0, le=1)] = 0.05
    beta1: Annotated[float, knob("AdamW's first momentum", ge=0, lt=1)] = 0.9
    beta2: Annotated[float, knob("AdamW's second momentum", ge=0, lt=1)] = 0.95
    momentum: Annotated[float, knob("Muon's momentum", ge=0, lt=1)] = 0.95
    grad_clip: Annotated[float, knob("Largest gradient norm; 0 = never clip", ge=0)] = 1.0


class PretrainSettings(Settings):
    """A model from nothing, on a corpus folder."""

    data: Annotated[str, flag("Corpus folder made by preprocess (required)", "-d")]
    out: Annotated[str, flag("Run folder to write (required)", "-o", "--out-dir", "--output-dir")]
    resume: Annotated[bool, flag("Continue what is in the run folder")] = False
    seed: Annotated[int, flag("Seed of weights and data order", ge=0, le=LARGEST_SEED)] = 0
    device: Annotated[str, flag("auto, cpu, cuda or mps")] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        flag("Number format of the computation; auto measures the machine"),
    ] = "auto"
    model: ModelSettings = field(default_factory=ModelSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)


class FinetuneSettings(Settings):
    """A trained model, on dialogues."""

    model: Annotated[str, flag("Model or run folder to start from (required)", "-m", "--init-from")]
    data: Annotated[str, flag("Dialogues (.jsonl) or a corpus folder (required)", "-d")]
    out: Annotated[str, flag("Run folder to write (required)", "-o", "--out-dir", "--output-dir")]
    resume: Annotated[bool, flag("Continue what is in the run folder")] = False
    train_on: Annotated[
        Literal["assistant", "all"], flag("Learn the replies only, or every token")
    ] = "assistant"
    seed: Annotated[int, flag("Seed of the data order", ge=0, le=LARGEST_SEED)] = 0
    device: Annotated[str, flag("auto, cpu, cuda or mps")] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        flag("Number format of the computation; auto measures the machine"),
    ] = "auto"
    train: TrainSettings = field(default_factory=TrainSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)


class SamplingSettings(Settings):
    """How the next token is chosen."""

    temperature: Annotated[
        float, flag("0 always takes the likeliest token", "--temp", panel="Sampling", ge=0, le=100)
    ] = 0.7
    top_k: Annotated[int, flag("Only the k likeliest tokens; 0 = all", panel="Sampling", ge=0)] = 50
    top_p: Annotated[
        float, flag("Only the likeliest tokens of this mass", panel="Sampling", gt=0, le=1)
    ] = 0.95
    min_p: Annotated[
        float,
        flag("Only tokens this likely beside the likeliest", panel="Sampling", ge=0, lt=1),
    ] = 0.0
    repetition_penalty: Annotated[
        float, flag("Above 1 makes repeats rarer", "--repeat-penalty", panel="Sampling", gt=0)
    ] = 1.0
    max_tokens: Annotated[
        int, flag("Longest reply", "-n", "--max-new-tokens", panel="Sampling", ge=1)
    ] = 256
    seed: (
        Annotated[int, flag("Seed of the choice", panel="Sampling", ge=0, le=LARGEST_SEED)] | None
    ) = None
    stop: Annotated[
        list[str], flag("End the reply before this text; repeatable", panel="Sampling")
    ] = field(default_factory=list)


class EvaluateSettings(Settings):
    """A model, and the texts or dialogues it is judged by."""

    model: Annotated[str, flag("Model or run folder (required)", "-m")]
    data: Annotated[str, flag("Corpus folder, or a file of texts or dialogues (required)", "-d")]
    out: Annotated[str, flag("Folder for results.json and samples.jsonl", "-o")] | None = None
    split: Annotated[Literal["train", "val", "test"], flag("Split of a corpus folder")] = "test"
    max_examples: (
        Annotated[int, flag("Judge at most this many generated replies", "--limit", ge=1)] | None
    ) = None
    batch_size: Annotated[int, flag("Rows computed at once", "-b", ge=1)] = 16
    device: Annotated[str, flag("auto, cpu, cuda or mps")] = "auto"
    max_tokens: Annotated[int, flag("Longest reply", "-n", "--max-new-tokens", ge=1)] = 128
    temperature: Annotated[float, flag("0 always takes the likeliest token", "--temp", ge=0)] = 0.0
    seed: Annotated[int, flag("Seed of the choice", ge=0, le=LARGEST_SEED)] = 0
    json: Annotated[bool, flag("Print the scores as JSON")] = False
    overwrite: Annotated[bool, flag("Replace results that are already there")] = False


class ChatSettings(Settings):
    """A model to talk to."""

    model: Annotated[str, flag("Model or run folder (required)", "-m")]
    prompt: (
        Annotated[str, flag("Answer this and end; - (and no -p in a pipe) reads stdin", "-p")]
        | None
    ) = None
    system: Annotated[str, flag("System prompt", "-s", "--system-prompt")] | None = None
    jsonl: Annotated[bool, flag("One JSON request a line in, one JSON reply a line out")] = False
    raw: Annotated[bool, flag("Continue the text instead of answering (base models)")] = False
    device: Annotated[str, flag("auto, cpu, cuda or mps")] = "auto"
    batch_size: Annotated[int, flag("Requests computed at once with --jsonl", "-b", ge=1)] = 16
    history: Annotated[bool, flag("Keep what you type for the next time")] = True
    sampling: SamplingSettings = field(default_factory=SamplingSettings)


class DemoSettings(Settings):
    """The five verbs on the bundled corpus."""

    out: Annotated[str, flag("Folder for everything the demo makes", "-o")] = "runs/demo"
    fresh: Annotated[bool, flag("Start over")] = False
    seed: Annotated[int, flag("Seed of corpus, weights and data order", ge=0, le=LARGEST_SEED)] = 0


def replace(settings: Any, **changes: Any) -> Any:
    """A copy of `settings` with other values, checked like any input."""
    return msgspec.convert(msgspec.to_builtins(settings) | changes, type(settings))
