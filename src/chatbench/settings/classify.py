"""Settings of classify: texts in, labels out."""

from typing import Annotated

from msgspec import field

from chatbench.settings.base import Settings, flag, knob
from chatbench.settings.use import Template


class ClassifySettings(Settings):
    """A model that tells labels apart, and the texts that get one."""

    model: Annotated[str, flag("Model or run folder (required)", "-m")]
    inputs: Annotated[
        list[str], knob("One file: CSV, TSV, JSON Lines or a text a line; none or - is stdin")
    ] = field(default_factory=list)
    choice: Annotated[
        list[str],
        flag("A label, for a chat model that has no head for them; repeatable"),
    ] = field(default_factory=list)  # fmt: skip
    system: Annotated[str, flag("System prompt, with --choice", "-s", "--system-prompt")] | None = (
        None
    )
    top_k: Annotated[int, flag("So many labels of each text, the likeliest first", ge=1)] = 1
    json: Annotated[bool, flag("One JSON object a line, whatever came in")] = False
    report: Annotated[bool, flag("How often each label occurs, in place of the rows")] = False
    format: Annotated[
        str, flag("Form of the input: auto (by content), csv, jsonl or text", panel="Reading")
    ] = "auto"
    encoding: Annotated[str, flag("Character encoding; auto finds it", panel="Reading")] = "auto"
    map: Annotated[
        list[str], flag("Column of the text, such as text=review", panel="Reading")
    ] = field(default_factory=list)  # fmt: skip
    batch_size: Annotated[int, flag("Texts computed at once", "-b", ge=1)] = 32
    device: Annotated[str, flag("auto, cpu, cuda or mps")] = "auto"
    template: Template | None = None
