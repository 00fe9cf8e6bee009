"""Settings of learning from rewards (`finetune --objective grpo`)."""

from typing import Annotated, Literal

from msgspec import field

from chatbench.settings.base import Settings, flag, knob


class GrpoSettings(Settings):
    """Replies are drawn, judged by rewards, and made likelier or less likely (GRPO)."""

    reward: Annotated[
        list[str],
        flag("What a reply is worth, NAME[:ARGUMENT][*WEIGHT]; repeatable, added up. A metric"
             " (exact_match, chrf, ...), contains[:TEXT], length:LEAST-MOST words, regex:PATTERN,"
             " screen:FOLDER or screen:FOLDER#CATEGORY, tag:NAME", "--reward-funcs",
             panel="Rewards"),
    ] = field(default_factory=list)  # fmt: skip
    group_size: Annotated[
        int,
        flag("Replies to each prompt, judged beside each other; 1: beside those to the other"
             " prompts (REINFORCE)", "--num-generations", panel="Rewards", ge=1),
    ] = 8  # fmt: skip
    prompts_per_step: Annotated[int, flag("Prompts answered in a step", panel="Rewards", ge=1)] = 16
    updates: Annotated[
        int,
        flag("Steps that learn from the same replies", "--num-iterations", panel="Rewards", ge=1),
    ] = 1
    max_new_tokens: Annotated[
        int, flag("Longest reply", "--max-completion-length", panel="Rewards", ge=1)
    ] = 64
    temperature: Annotated[
        float, flag("Of the replies that are drawn", "--temp", panel="Rewards", gt=0, le=100)
    ] = 1.0
    clip_range: Annotated[
        float,
        flag("A token gains nothing by becoming likelier or less likely than by this share",
             "--epsilon", panel="Rewards", gt=0, lt=1),
    ] = 0.2  # fmt: skip
    clip_range_high: (
        Annotated[float, knob("The same for likelier alone (default: clip_range)", gt=0)] | None
    ) = None
    kl_coef: Annotated[
        float,
        flag("Price of moving away from the model at the start; 0 = free", panel="Rewards", ge=0),
    ] = 0.0
    scale_rewards: Annotated[
        Literal["none", "group"],
        knob("group: divide advantages by the spread of their group, as the first GRPO did"),
    ] = "none"
    eval_prompts: Annotated[int, knob("Held-out prompts answered at a validation", ge=1)] = 128
