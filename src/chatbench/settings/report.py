"""Settings of report."""

from typing import Annotated

from msgspec import field

from chatbench.settings.base import Settings, flag, knob


class ReportSettings(Settings):
    """Folders, and the page made of them."""

    paths: Annotated[
        list[str], knob("Run, evaluation or corpus folders, or names such as @latest")
    ] = field(default_factory=list)
    out: (
        Annotated[
            str, flag("Page to write (default: report.html in the folder, of several: here)", "-o")
        ]
        | None
    ) = None
    open: Annotated[bool, flag("Show the page in a browser")] = False
    json: Annotated[bool, flag("Print the essentials as JSON")] = False
    png: (
        Annotated[str, flag("Also draw the charts as PNG files in this folder (extra plot)")] | None
    ) = None
