"""Settings of `finetune --objective dpo`."""

from typing import Annotated, Literal

from chatbench.settings.base import Settings, flag


class PreferenceSettings(Settings):
    """How much better the chosen one of two replies shall become."""

    beta: Annotated[
        float, flag("How much a nat of log-probability is worth as reward; smaller moves further"
                    " from the starting model", panel="Preferences", gt=0)
    ] = 0.1  # fmt: skip
    loss_type: Annotated[
        Literal["sigmoid", "ipo", "hinge"],
        flag("sigmoid: DPO; ipo: a margin of 1/2β nats a token, no more; hinge: SLiC",
             panel="Preferences"),
    ] = "sigmoid"  # fmt: skip
    label_smoothing: Annotated[
        float,
        flag("Probability that a judgement is wrong (conservative DPO)", panel="Preferences", ge=0,
             lt=0.5),
    ] = 0.0  # fmt: skip
    sft_weight: Annotated[
        float,
        flag("Also learn the chosen replies as they are, with this weight", "--rpo-alpha",
             panel="Preferences", ge=0),
    ] = 0.0  # fmt: skip
