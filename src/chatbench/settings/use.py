"""Settings of what is done with a model: evaluate, chat, demo."""

from typing import Annotated, Literal

from msgspec import Meta, field

from chatbench.settings.base import LARGEST_SEED, Settings, flag, knob

MOST_SAMPLES = 1000


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
    presence_penalty: Annotated[
        float, flag("Takes this from tokens already said", panel="Sampling", ge=-2, le=2)
    ] = 0.0
    frequency_penalty: Annotated[
        float, flag("Takes this from tokens for each time said", panel="Sampling", ge=-2, le=2)
    ] = 0.0
    logit_bias: Annotated[
        dict[str, Annotated[float, Meta(ge=-100, le=100)]],
        knob("Added to the scores of these tokens, given by id or text"),
    ] = field(default_factory=dict)
    max_tokens: Annotated[
        int, flag("Longest reply", "--max-new-tokens", panel="Sampling", ge=1)
    ] = 256
    seed: (
        Annotated[int, flag("Seed of the choice", panel="Sampling", ge=0, le=LARGEST_SEED)] | None
    ) = None
    stop: Annotated[
        list[str], flag("End the reply before this text; repeatable", panel="Sampling")
    ] = field(default_factory=list)
    logprobs: (
        Annotated[
            int,
            flag("With --json and --jsonl: log-probabilities, and so many alternatives a token",
                 panel="Sampling", ge=0, le=20),
        ]
        | None
    ) = None  # fmt: skip
    speculate: Annotated[
        Literal["auto", "on", "off"],
        knob("Guess several tokens from the text so far; auto: for the likeliest token alone, and"
             " where it pays"),
    ] = "auto"  # fmt: skip


Quantize = Annotated[
    Literal["none", "int8", "int4"],
    flag("Weights in 8 or 4 bits: less memory, faster replies on a CPU, slightly less exact"),
]
Template = Annotated[
    str,
    flag("Chat template: chatml, llama3, zephyr, mistral, plain, or a Jinja file"
         " (default: the model's own)", "--chat-template"),
]  # fmt: skip


class EvaluateSettings(Settings, kw_only=True):
    """A model, and the texts or dialogues it is judged by."""

    model: Annotated[
        str, flag("Model or run folder; none for a file of {reply, reference}", "-m")
    ] = ""
    data: Annotated[
        str,
        flag("Corpus folder, or a file of texts, dialogues, {query, choices, gold}, {good, bad} or"
             " {reply, reference} (required)", "-d"),
    ]  # fmt: skip
    out: Annotated[str, flag("Folder for results.json and samples.jsonl", "-o")] | None = None
    split: Annotated[Literal["train", "val", "test"], flag("Split of a corpus folder")] = "test"
    choice: Annotated[
        list[str],
        flag("Label texts by the likeliest of these replies; repeatable. auto: the labels of the"
             " data", panel="Classes"),
    ] = field(default_factory=list)  # fmt: skip
    map: Annotated[
        list[str],
        flag("Column of labelled texts, such as text=review or label=topic; repeatable",
             panel="Classes"),
    ] = field(default_factory=list)  # fmt: skip
    max_examples: (
        Annotated[int, flag("Judge at most this many generated replies", "--limit", ge=1)] | None
    ) = None
    batch_size: Annotated[int, flag("Rows computed at once", "-b", ge=1)] = 16
    device: Annotated[str, flag("auto, cpu, cuda or mps")] = "auto"
    quantize: Quantize = "none"
    template: Template | None = None
    max_tokens: Annotated[int, flag("Longest reply", "--max-new-tokens", ge=1)] = 128
    temperature: Annotated[float, flag("0 always takes the likeliest token", "--temp", ge=0)] = 0.0
    seed: Annotated[
        int, flag("Seed of the choice, and of the resampling", ge=0, le=LARGEST_SEED)
    ] = 0
    baseline: Annotated[
        list[str],
        flag("Compare with a model, an evaluation's folder, or ngram, bm25, copy or eliza;"
             " repeatable", "--compare", panel="Compare"),
    ] = field(default_factory=list)  # fmt: skip
    require: Annotated[
        list[str],
        flag("End with exit code 9 unless this holds, such as 'chrf>=30'; repeatable",
             panel="Compare"),
    ] = field(default_factory=list)  # fmt: skip
    by: Annotated[
        list[str],
        flag("Scores for each value of turn, script, tag.NAME or any column; repeatable. turn:"
             " every reply is judged, not the last of each conversation alone", panel="Compare"),
    ] = field(default_factory=list)  # fmt: skip
    reuse: (
        Annotated[
            str, flag("Take replies from this evaluation's folder or samples.jsonl",
                      panel="Compare"),
        ]
        | None
    ) = None  # fmt: skip
    control: Annotated[
        Literal["auto", "every", "off"],
        flag("Judge whether replies obey their tags; every: also ask each question under every"
             " other value", panel="Compare"),
    ] = "auto"  # fmt: skip
    train_data: (
        Annotated[
            str, flag("Training text, for what is copied and for baselines (default: the run's)",
                      panel="Compare"),
        ]
        | None
    ) = None  # fmt: skip
    context: (
        Annotated[int, flag("Tokens that likelihood looks back at most", panel="Likelihood", ge=1)]
        | None
    ) = None
    stride: (
        Annotated[
            int,
            flag("Tokens that each further window of a long text scores (default: half the"
                 " context)", panel="Likelihood", ge=1),
        ]
        | None
    ) = None  # fmt: skip
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
    tag: Annotated[
        list[str],
        flag("Answer under this tag, such as style=formal, for a model taught with --tag-column;"
             " repeatable"),
    ] = field(default_factory=list)  # fmt: skip
    json: Annotated[
        bool,
        flag("The reply as JSON: text, finish reason, usage, timings, seed", panel="Pipes"),
    ] = False
    jsonl: Annotated[
        bool, flag("One JSON request a line in, one JSON reply a line out", panel="Pipes")
    ] = False
    samples: Annotated[
        int,
        flag(
            "So many replies to each prompt, each with its own seed",
            "-n",
            "--n",
            "--num-samples",
            "--num-return-sequences",
            panel="Pipes",
            ge=1,
            le=MOST_SAMPLES,
        ),
    ] = 1
    out: (
        Annotated[str, flag("With --jsonl: add the replies to this file", "-o", panel="Pipes")]
        | None
    ) = None
    resume: Annotated[
        bool, flag("With --out: leave out the ids that the file holds already", panel="Pipes")
    ] = False
    choice: Annotated[
        list[str],
        flag("The reply is one of these; repeatable. With --json: how likely each is",
             panel="Pipes"),
    ] = field(default_factory=list)  # fmt: skip
    json_schema: (
        Annotated[
            str,
            flag("The reply is JSON of the schema in this file; `object`: any JSON object",
                 panel="Pipes"),
        ]
        | None
    ) = None  # fmt: skip
    raw: Annotated[bool, flag("Continue the text instead of answering (base models)")] = False
    device: Annotated[str, flag("auto, cpu, cuda or mps")] = "auto"
    quantize: Quantize = "none"
    template: Template | None = None
    batch_size: Annotated[int, flag("Replies computed at once in a pipe", "-b", ge=1)] = 16
    history: Annotated[bool, flag("Keep what you type for the next time")] = True
    save: Annotated[bool, flag("Keep conversations, as training data")] = True
    continue_: Annotated[bool, flag("Go on with the newest conversation")] = False
    session: (
        Annotated[str, flag("Go on with the conversation of this name, or begin one")] | None
    ) = None
    sampling: SamplingSettings = field(default_factory=SamplingSettings)


class ExportSettings(Settings):
    """A model, and the form it leaves in."""

    model: Annotated[str, flag("Model, run or adapter folder (required)", "-m")]
    out: Annotated[str, flag("File (gguf) or folder (hf) to write (required)", "-o")]
    to: Annotated[
        Literal["gguf", "hf"],
        flag("gguf: one file for llama.cpp and what is built on it; hf: a plain folder for"
             " transformers, adapters merged"),
    ] = "gguf"  # fmt: skip
    quantize: (
        Annotated[
            Literal["f32", "f16", "q8_0", "q4_0"],
            flag("Number format of the matrices in a gguf (default: f16)"),
        ]
        | None
    ) = None
    template: Template | None = None
    verify: Annotated[bool, flag("Open what was written and compare it with the model")] = False
    overwrite: Annotated[bool, flag("Replace what is already there")] = False


class DemoSettings(Settings):
    """The five verbs on the bundled corpus."""

    out: Annotated[str, flag("Folder for everything the demo makes", "-o")] = "runs/demo"
    fresh: Annotated[bool, flag("Start over")] = False
    seed: Annotated[int, flag("Seed of corpus, weights and data order", ge=0, le=LARGEST_SEED)] = 0
