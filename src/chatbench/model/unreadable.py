"""What a file is that cannot be read as weights, and what to do about it."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from chatbench.errors import IntegrityError

_CONVERT = (
    "convert the model to safetensors with transformers' save_pretrained, or look for a revision"
    " of it in safetensors"
)
PICKLES = (
    "a pickle, and reading pickles can run whatever code they contain, so chatbench never does",
    _CONVERT,
)
_GGUF = (
    "a GGUF file, a form for llama.cpp that chatbench writes (chatbench export) but does not read",
    "take the model folder it was made from",
)
_TENSORFLOW = ("a TensorFlow or Flax file, which chatbench does not read", _CONVERT)
_ONNX = ("an ONNX file, which chatbench does not read", _CONVERT)

_BY_SUFFIX = {
    ".bin": PICKLES, ".pt": PICKLES, ".pth": PICKLES, ".ckpt": PICKLES, ".pkl": PICKLES,
    ".pickle": PICKLES, ".gguf": _GGUF, ".h5": _TENSORFLOW, ".msgpack": _TENSORFLOW,
    ".onnx": _ONNX,
}  # fmt: skip
_BY_CONTENT = (
    (b"PK\x03\x04", PICKLES),  # torch.save since 1.6, a zip
    (b"PK\x05\x06", PICKLES),
    (b"GGUF", _GGUF),
    (b"\x89HDF\r\n\x1a\n", _TENSORFLOW),
    (
        b"version https://git-lfs",
        ("a Git LFS pointer, not the weights themselves", "run git lfs pull where it was cloned"),
    ),
)
FIRST_BYTES = 32
_PLAUSIBLE_HEADER = 4 << 20


def name_content(start: bytes) -> tuple[str, str] | None:
    """What a file with these first bytes is, and what to do; None for what is not recognised.

    Only for files that are no safetensors: a header of 640 bytes begins like a pickle.
    """
    for magic, answer in _BY_CONTENT:
        if start.startswith(magic):
            return answer
    if int.from_bytes(start[:8], "little") <= _PLAUSIBLE_HEADER:
        return None  # the size of a header, of safetensors cut short
    # Protocols 2 to 5 begin with PROTO; 0 and 1 with a mark, an empty container or a global.
    if len(start) > 2 and start[0] == 0x80 and 2 <= start[1] <= 5:
        return PICKLES
    if start[:1] in (b"(", b"}", b"]", b"c") and len(start) > 2:
        return PICKLES
    return None


def name_suffix(path: Path) -> tuple[str, str] | None:
    """The same by the file's name."""
    return _BY_SUFFIX.get(path.suffix.lower())


def find_unreadable(folder: Path) -> IntegrityError | None:
    """The error that says which weights lie in a folder, in a form that is not read."""
    for path in _sorted_files(folder):
        answer = name_suffix(path)
        if answer is not None:
            what, hint = answer
            return IntegrityError(f"{folder} holds {path.name}: {what}", hint=hint)
    return None


def _sorted_files(folder: Path) -> list[Path]:
    # A folder may hold anything, so no more than so many names are looked at.
    paths = sorted(islice(folder.iterdir(), 10_000))
    # training_args.bin and the like are pickles too, but not the weights.
    return sorted(paths, key=lambda path: not path.name.startswith(("pytorch_model", "model")))
