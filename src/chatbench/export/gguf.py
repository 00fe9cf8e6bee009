"""Writing a model as one GGUF file (version 3), tensor by tensor."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from chatbench.errors import UsageError
from chatbench.export.gguf_metadata import describe_model
from chatbench.export.gguf_numbers import (
    BLOCK,
    Format,
    choose_format,
    convert,
    ggml_type,
    stored_bytes,
)
from chatbench.export.gguf_tensors import Source, sources
from chatbench.export.gguf_tokenizer import Value, describe_tokenizer
from chatbench.model.folder import OpenedModel

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from torch import Tensor


class Entry(NamedTuple):
    """A tensor and the format it is stored in."""

    source: Source
    number_format: Format


class Plan(NamedTuple):
    """All that a file will hold; nothing is converted yet."""

    architecture: str
    splitter: str
    metadata: dict[str, Value]
    entries: list[Entry]
    notices: list[str]

    def sizes(self) -> dict[Format, tuple[int, int]]:
        """For each format, how many tensors have it and how many bytes they take."""
        count = Counter(entry.number_format for entry in self.entries)
        return {
            wanted: (number, sum(stored_bytes(e.source.shape, wanted)
                                 for e in self.entries if e.number_format == wanted))
            for wanted, number in count.items()
        }  # fmt: skip


def require_gguf() -> None:
    """Raise UsageError when the package that writes GGUF is not installed."""
    if find_spec("gguf") is None:
        raise UsageError(
            "writing GGUF needs the package gguf", hint='pip install "chatbench[gguf]"'
        )


def plan(opened: OpenedModel, weights: dict[str, Tensor], name: str, wanted: Format) -> Plan:
    """What to write for a model, its weights in our names (adapters merged).

    Raises IntegrityError for what llama.cpp would compute or read differently.
    """
    config = opened.model.config
    shape = describe_model(config, name, wanted)
    vocabulary = describe_tokenizer(opened.tokenizer, config.vocab_size)
    tensors = shape.tensors + sources(config, weights, shape.architecture)
    entries = [Entry(t, choose_format(t.name, t.shape, wanted)) for t in tensors]
    notices = shape.notices + vocabulary.notices
    odd = sum(len(t.shape) > 1 and t.shape[-1] % BLOCK != 0 for t in tensors)
    if wanted in ("q8_0", "q4_0") and odd:
        notices.append(f"{odd} matrices stay f16, for {wanted} wants rows of a multiple of {BLOCK}")
    return Plan(
        shape.architecture, vocabulary.name, shape.metadata | vocabulary.metadata, entries, notices
    )


def write_gguf(path: Path, content: Plan) -> None:
    """Write the file; one tensor at a time is held in two formats. Raises OSError."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, content.architecture)
    try:
        for key, value in content.metadata.items():
            _add(writer, key, value)
        for source, number_format in content.entries:
            _announce(writer, source, number_format)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for source, number_format in content.entries:
            writer.write_tensor_data(convert(source.name, source.load(), number_format))
    finally:
        writer.close()


def _add(writer: GGUFWriter, key: str, value: Value) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _announce(writer: GGUFWriter, source: Source, number_format: Format) -> None:
    import numpy as np

    raw = ggml_type(number_format)
    size = stored_bytes(source.shape, number_format)
    # Only for bytes would the writer take the shape for one of blocks.
    writer.add_tensor_info(source.name, source.shape, np.dtype(np.float32), size, raw)
