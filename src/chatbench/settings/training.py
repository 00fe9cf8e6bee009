"""Settings of pretrain and finetune."""

from typing import Annotated, Literal

from msgspec import field

from chatbench.settings.base import LARGEST_SEED, Settings, flag, knob
from chatbench.settings.heads import HeadSettings
from chatbench.settings.preference import PreferenceSettings
from chatbench.settings.rewards import GrpoSettings

TagDropout = Annotated[
    float,
    flag("Share of tagged texts that go without their tags, drawn anew in each epoch; so the model"
         " works without as well", panel="Tags", ge=0, le=1),
]  # fmt: skip


class ModelSettings(Settings):
    """Shape of a model trained from nothing; explicit numbers win over the size."""

    size: Annotated[
        Literal["auto", "tiny", "small", "base", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"],
        flag("Shape by name; auto: the best for the time and the corpus. tiny about 3M, small about"
             " 13M, base about 75M parameters and the embedding; gpt2...: depth, width, heads and"
             " context of that model, blocks of ours", panel="Model"),
    ] = "auto"  # fmt: skip
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
            flag(
                "Tokens per step (default: by size or length)",
                "--total-batch-tokens",
                panel="Batch",
                ge=8,
            ),
        ]
        | None
    ) = None
    micro_batch: Annotated[
        int,
        flag("Rows computed at once; accumulation follows", "-b", "--batch-size",
             "--per-device-train-batch-size", panel="Batch", ge=1),
    ] | None = None  # fmt: skip
    compile: Annotated[
        Literal["auto", "on", "off"],
        flag("Compile the model before training; auto: on CUDA, when it pays", panel="Batch"),
    ] = "auto"
    parallel: Annotated[
        Literal["auto", "ddp", "fsdp"],
        flag("What the ranks of torchrun hold: the whole model (ddp) or a share of it (fsdp); auto:"
             " whole where it fits", panel="Batch"),
    ] = "auto"  # fmt: skip
    activation_checkpointing: Annotated[
        Literal["auto", "on", "off"],
        knob("Compute blocks twice to save memory; auto: on CUDA when memory asks for it"),
    ] = "auto"
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
    save_minutes: Annotated[float, knob("Minutes between checkpoints besides", gt=0)] = 1.0
    keep: Annotated[
        int,
        flag("Newest checkpoints kept, besides the best", "--save-total-limit", panel="Cadence",
             ge=1),
    ] = 2  # fmt: skip
    patience: Annotated[
        int,
        flag("Stop after so many validations without a better one, 0 = never (default: finetune 3,"
             " pretrain 0)", "--early-stopping-patience", panel="Cadence", ge=0),
    ] | None = None  # fmt: skip
    eval_tokens: Annotated[
        int,
        knob("Validation tokens looked at each time (default 65536, fewer in short runs)", ge=1),
    ] | None = None  # fmt: skip
    prompts: Annotated[list[str], knob("What the samples continue or answer")] = field(
        default_factory=list
    )
    tensorboard: Annotated[bool, knob("Write TensorBoard events when it is installed")] = True
    histograms: (
        Annotated[int, knob("Steps between histograms of weights and gradients", ge=1)] | None
    ) = None


class OptimSettings(Settings):
    """How the weights move."""

    optimizer: Annotated[
        Literal["muon", "adamw"],
        flag("muon for the hidden matrices and AdamW for the rest, or AdamW for all",
             panel="Optimiser"),
    ] = "muon"  # fmt: skip
    learning_rate: (
        Annotated[
            float,
            flag("Peak learning rate (default: by width, batch)", "--lr", panel="Optimiser", gt=0),
        ]
        | None
    ) = None
    weight_decay: Annotated[float, flag("Decay of the matrices", panel="Optimiser", ge=0)] = 0.1
    warmup: Annotated[float, knob("Share of the run that warms up", ge=0, le=1)] = 0.02
    decay: Annotated[float, knob("Share of the run that decays", ge=0, le=1)] = 0.6
    min_lr: Annotated[float, knob("Rate at the end, as a share of the peak", ge=0, le=1)] = 0.05
    beta1: Annotated[float, knob("AdamW's first momentum", ge=0, lt=1)] = 0.9
    beta2: Annotated[float, knob("AdamW's second momentum", ge=0, lt=1)] = 0.95
    momentum: Annotated[float, knob("Muon's momentum, after 300 steps", ge=0, lt=1)] = 0.95
    embedding_rate: Annotated[
        float, knob("Rate of embedding, head and norms beside Muon, as a multiple", gt=0)
    ] = 4.0
    grad_clip: Annotated[float, knob("Largest gradient norm; 0 = never clip", ge=0)] = 1.0
    spike: Annotated[
        float, knob("Skip a step whose gradient norm is so many medians above it; 0 = never", ge=0)
    ] = 10.0
    most_skips: Annotated[
        int, knob("End after so many steps in a row without a finite loss and gradient", ge=1)
    ] = 5


class LoraSettings(Settings):
    """An adapter that learns in place of the weights (Hu et al. 2021)."""

    rank: (
        Annotated[
            int,
            flag("Train an adapter of this rank; the weights stay as they are", "--lora-r",
                 called="lora_rank", panel="Adapter", ge=1),
        ]
        | None
    ) = None  # fmt: skip
    alpha: (
        Annotated[
            float,
            flag("Its strength is alpha / rank (default: twice the rank)", called="lora_alpha",
                 panel="Adapter", gt=0),
        ]
        | None
    ) = None  # fmt: skip
    dropout: Annotated[
        float,
        flag("Share of its inputs that are left out at random", called="lora_dropout",
             panel="Adapter", ge=0, lt=1),
    ] = 0.0  # fmt: skip
    targets: Annotated[
        list[str],
        flag("Layers that get one, such as q_proj; repeatable (default: all of the blocks)",
             "--lora-target-modules", called="lora_targets", panel="Adapter"),
    ] = field(default_factory=list)  # fmt: skip
    rslora: Annotated[
        bool, flag("Strength alpha / root of the rank", "--use-rslora", panel="Adapter")
    ] = False


class PretrainSettings(Settings):
    """A model from nothing, on a corpus folder."""

    data: Annotated[str, flag("Corpus folder made by preprocess (required)", "-d")]
    out: Annotated[str, flag("Run folder to write (required)", "-o", "--out-dir", "--output-dir")]
    resume: Annotated[bool, flag("Continue what is in the run folder")] = False
    dry_run: Annotated[bool, flag("Show the plan and what it will cost, then end")] = False
    tag_dropout: TagDropout = 0.1
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
    data: Annotated[
        list[str],
        flag("Dialogues (.jsonl) or a corpus folder (required); repeatable. old/:0.1 makes a tenth"
             " of the training tokens of old/", "-d"),
    ]  # fmt: skip
    out: Annotated[str, flag("Run folder to write (required)", "-o", "--out-dir", "--output-dir")]
    resume: Annotated[bool, flag("Continue what is in the run folder")] = False
    dry_run: Annotated[bool, flag("Show the plan and what it will cost, then end")] = False
    objective: Annotated[
        Literal["sft", "dpo", "grpo", "classify"],
        flag("What is learned: sft, replies as they are; dpo, to prefer chosen to rejected replies;"
             " grpo, what earns --reward; classify, to tell the labels of texts apart"),
    ] = "sft"  # fmt: skip
    map: Annotated[
        list[str],
        flag("With classify: column for a part of a row, such as text=TITLE or label=TOPIC;"
             " repeatable"),
    ] = field(default_factory=list)  # fmt: skip
    train_on: Annotated[
        Literal["assistant", "last", "all"],
        flag("Learn the replies, the last one of each conversation, or every token"),
    ] = "assistant"
    probe: (
        Annotated[
            str,
            flag("Text, dialogues or a corpus folder on which forgetting is measured (default: what"
                 " was held out of the base model's corpus)"),
        ]
        | None
    ) = None  # fmt: skip
    template: (
        Annotated[
            str,
            flag("Chat template: chatml, llama3, zephyr, mistral, plain, or a Jinja file"
                 " (default: the model's own)", "--chat-template"),
        ]
        | None
    ) = None  # fmt: skip
    tag_column: Annotated[
        list[str],
        flag("Columns of a .jsonl that become control text, such as style,topic", panel="Tags"),
    ] = field(default_factory=list)
    tag_dropout: TagDropout = 0.1
    val_fraction: (
        Annotated[
            float,
            flag("Share of the dialogues of a file that validate (default: as the base model's"
                 " corpus was split, else 0.05)", panel="Split", ge=0, lt=1),
        ]
        | None
    ) = None  # fmt: skip
    test_fraction: (
        Annotated[
            float,
            flag("Share of them that is kept for evaluate, such as 0 where a test of your own is at"
                 " hand (default: as --val-fraction)", panel="Split", ge=0, lt=1),
        ]
        | None
    ) = None  # fmt: skip
    seed: Annotated[int, flag("Seed of the data order", ge=0, le=LARGEST_SEED)] = 0
    device: Annotated[str, flag("auto, cpu, cuda or mps")] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        flag("Number format of the computation; auto measures the machine"),
    ] = "auto"
    train_layers: Annotated[
        int,
        flag("Only the last so many blocks and the last norm learn; 0: a classifier's head alone"
             " (default: everything learns)", panel="Adapter", ge=0),
    ] | None = None  # fmt: skip
    quantize: Annotated[
        Literal["none", "int8", "int4"],
        flag("With --lora-rank: the frozen weights in 8 or 4 bits, which takes less memory, not"
             " less time", panel="Adapter"),
    ] = "none"  # fmt: skip
    train: TrainSettings = field(default_factory=TrainSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    preference: PreferenceSettings = field(default_factory=PreferenceSettings)
    grpo: GrpoSettings = field(default_factory=GrpoSettings)
    head: HeadSettings = field(default_factory=HeadSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)

    def __post_init__(self) -> None:
        # Programs and older config.toml files name one place.
        named: object = self.data
        if isinstance(named, str):
            self.data = [named]
