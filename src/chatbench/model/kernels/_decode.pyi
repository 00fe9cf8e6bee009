KINDS: tuple[str, str, str, str]

def vectors() -> str: ...
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
def share_threads(address: int, /) -> None: ...
