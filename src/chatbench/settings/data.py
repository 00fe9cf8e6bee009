"""Settings of what goes in: preprocess and screen."""

from typing import Annotated, Literal

from msgspec import field

from chatbench.settings.base import LARGEST_SEED, Settings, flag, knob

_FORMATS = (
    "Form of the files: auto (by content), text, html, json, jsonl, csv, parquet, arrow, chatml,"
    " chatlog, chatterbot, dailydialog, parlai, bin"
)


class PreprocessSettings(Settings):
    """What `preprocess` reads, cleans, leaves out and splits, and the tokenizer it trains."""

    out: Annotated[str, flag("Corpus folder to write (required)", "-o")]
    inputs: Annotated[list[str], knob("Files, folders, globs; - is stdin")] = field(
        default_factory=list
    )
    overwrite: Annotated[bool, flag("Replace a corpus that is already there")] = False
    workers: Annotated[int, flag("Processes; 0 takes one for each core", ge=0, le=1024)] = 0
    strict: Annotated[
        bool, flag("End with exit 3 when a record cannot be read or a chat written")
    ] = False
    profile: Annotated[bool, flag("Collocations and an n-gram baseline in the report (NLTK)")] = (
        True
    )
    show: Annotated[int, flag("Show this many examples, token by token", ge=0, le=1000)] = 0
    format: Annotated[str, flag(_FORMATS, panel="Reading")] = "auto"
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
        float,
        flag("Share of documents that go without a given tag for good (training leaves tags out"
             " anew in each epoch)", panel="Reading", ge=0, le=1),
    ] = 0.0  # fmt: skip
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
    template: (
        Annotated[
            str,
            flag("Chat template for --tokenizer: chatml, llama3, zephyr, mistral, plain, or a Jinja"
                 " file (default: its own)", "--chat-template", panel="Tokenizer"),
        ]
        | None
    ) = None  # fmt: skip
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
