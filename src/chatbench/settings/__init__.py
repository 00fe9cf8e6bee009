"""Every setting a person can give: name, type, range, default, help and flags in one line each.

The command line, the environment, the TOML file, `--print-config` and the run folder's
`config.toml` all read this package. A setting without `flag(...)` is reached through a TOML file or
`--set section.name=value`.
"""

from chatbench.settings.base import LARGEST_SEED, Settings, flag, knob, replace
from chatbench.settings.classify import ClassifySettings
from chatbench.settings.data import PreprocessSettings, ScreenSettings
from chatbench.settings.heads import HeadSettings
from chatbench.settings.preference import PreferenceSettings
from chatbench.settings.report import ReportSettings
from chatbench.settings.rewards import GrpoSettings
from chatbench.settings.training import (
    FinetuneSettings,
    LoraSettings,
    ModelSettings,
    OptimSettings,
    PretrainSettings,
    TrainSettings,
)
from chatbench.settings.use import (
    MOST_SAMPLES,
    ChatSettings,
    DemoSettings,
    EvaluateSettings,
    ExportSettings,
    SamplingSettings,
)

__all__ = [
    "LARGEST_SEED",
    "MOST_SAMPLES",
    "ChatSettings",
    "ClassifySettings",
    "DemoSettings",
    "EvaluateSettings",
    "ExportSettings",
    "FinetuneSettings",
    "GrpoSettings",
    "HeadSettings",
    "LoraSettings",
    "ModelSettings",
    "OptimSettings",
    "PreferenceSettings",
    "PreprocessSettings",
    "PretrainSettings",
    "ReportSettings",
    "SamplingSettings",
    "ScreenSettings",
    "Settings",
    "TrainSettings",
    "flag",
    "knob",
    "replace",
]
