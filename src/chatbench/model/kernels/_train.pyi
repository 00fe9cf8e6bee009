PASSES: tuple[str, ...]

def vectors() -> str: ...
def run(
    number: int,
    kind: int,
    threads: int,
    fast: bool,
    count: int,
    piece: int,
    addresses: tuple[int, ...],
    sizes: tuple[int, ...],
    eps: float,
    at: tuple[int, ...],
    to: tuple[int, ...],
    back: tuple[int, ...],
    /,
) -> None: ...
def share_threads(address: int, /) -> None: ...
