KINDS: tuple[str, str, str, str]

def vectors() -> tuple[str, str]: ...
def product(
    kind: int,
    x: int,
    weights: int,
    scales: int,
    bias: int,
    out: int,
    rows: int,
    outputs: int,
    inputs: int,
    block: int,
    group: int,
    narrow: bool,
    threads: int,
    fast: bool,
    /,
) -> None: ...
def step(
    model: int,
    blocks: int,
    caches: int,
    ids: bytes,
    lengths: bytes,
    angles: int,
    reach: int,
    scratch: int,
    size: int,
    logits: int,
    threads: int,
    fast: bool,
    /,
) -> None: ...
def step_size(model: int, rows: int, threads: int, /) -> int: ...
def share_threads(address: int, /) -> None: ...
