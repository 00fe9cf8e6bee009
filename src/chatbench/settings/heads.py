"""Settings of `finetune --objective classify`."""

from typing import Annotated, Literal

from chatbench.settings.base import Settings, flag


class HeadSettings(Settings):
    """What a classifier's head sees of a text, and of how much of it in training."""

    pooling: Annotated[
        Literal["mean", "last"],
        flag("mean: the head sees the mean over a text's tokens, which see the whole text where all"
             " weights learn; last: its last token alone, which transformers knows too",
             panel="Classes"),
    ] = "mean"  # fmt: skip
    token_dropout: Annotated[
        float,
        flag("Share of a text's tokens that are left out at random in training, drawn anew in each"
             " epoch", panel="Classes", ge=0, lt=1),
    ] = 0.2  # fmt: skip
