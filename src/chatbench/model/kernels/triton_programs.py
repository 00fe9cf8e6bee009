"""The Triton programs of decode attention. Importing this file needs Triton, so only
`triton_decode` does, inside a function. Legend as there; M = T·(H/K) rows of queries."""

# mypy: disable-error-code="no-untyped-def"
import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def attend_block(
    asked, k_from, v_from, k_place, v_place, start, end, at, wide, scale, peak, total, mix,
    WINDOW: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The running softmax after BLOCK_N more places: its peak, total and weighted values."""
    place = start + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_D)
    there = place < end
    far = place.to(tl.int64)
    key = tl.load(
        k_from + far[None, :] * k_place + depth[:, None],
        mask=there[None, :] & wide[:, None], other=0.0,
    )  # fmt: skip
    score = tl.dot(asked, key, input_precision=PRECISION) * scale
    seen = there[None, :] & (place[None, :] <= at[:, None])
    if WINDOW > 0:
        seen = seen & (place[None, :] > at[:, None] - WINDOW)
    score = tl.where(seen, score, float("-inf"))
    higher = tl.maximum(peak, tl.max(score, 1))
    # A query that has seen nothing yet keeps -inf, not to be subtracted from itself.
    level = tl.where(higher == float("-inf"), 0.0, higher)
    chance = tl.exp2(score - level[:, None])
    fade = tl.exp2(peak - level)
    value = tl.load(
        v_from + far[:, None] * v_place + depth[None, :],
        mask=there[:, None] & wide[None, :], other=0.0,
    )  # fmt: skip
    mix = mix * fade[:, None]
    mix += tl.dot(chance.to(value.dtype), value, input_precision=PRECISION)
    return higher, total * fade + tl.sum(chance, 1), mix


@triton.jit  # type: ignore[untyped-decorator]
def attend_split(
    q, keys, values, lengths, out, lse,
    q_row, q_token, q_head, k_row, k_place, k_head, v_row, v_place, v_head,
    capacity, scale,
    HEADS: tl.constexpr, TOKENS: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr,
    SPLITS: tl.constexpr, SPLIT: tl.constexpr, WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: one row, one key-value head, one split of the places.

    Writes the split's softmax average (BLOCK_M, WIDTH) and log-sum-exp (BLOCK_M,), base 2. A split
    beyond the row's length writes nothing; `merge_splits` does not read it.
    """
    row = tl.program_id(0) // HEADS
    head = tl.program_id(0) % HEADS
    split = tl.program_id(1)
    length = tl.load(lengths + row).to(tl.int32)
    length = tl.minimum(length, capacity)
    begin = split * SPLIT
    if begin < length:
        line = tl.arange(0, BLOCK_M)
        token = line // GROUP
        real = line < TOKENS * GROUP
        depth = tl.arange(0, BLOCK_D)
        wide = depth < WIDTH
        # Place of each query; it sees places up to its own.
        at = length - TOKENS + token
        q_at = q + row.to(tl.int64) * q_row + token[:, None] * q_token
        q_at += (head * GROUP + line % GROUP)[:, None] * q_head + depth[None, :]
        asked = tl.load(q_at, mask=real[:, None] & wide[None, :], other=0.0)
        peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        mix = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        k_from = keys + row.to(tl.int64) * k_row + head * k_head
        v_from = values + row.to(tl.int64) * v_row + head * v_head
        end = tl.minimum(begin + SPLIT, length)
        first = begin
        if WINDOW > 0:
            oldest = tl.maximum(length - TOKENS - WINDOW + 1, begin)
            first = begin + (oldest - begin) // BLOCK_N * BLOCK_N
        for start in range(first, end, BLOCK_N):
            peak, total, mix = attend_block(
                asked, k_from, v_from, k_place, v_place, start, end, at, wide, scale,
                peak, total, mix, WINDOW, BLOCK_N, BLOCK_D, PRECISION,
            )  # fmt: skip
        some = total > 0
        safe = tl.where(some, total, 1.0)
        place_of = (tl.program_id(0) * SPLITS + split) * BLOCK_M + line
        tl.store(
            out + place_of[:, None] * WIDTH + depth[None, :], mix / safe[:, None],
            mask=wide[None, :] & real[:, None],
        )  # fmt: skip
        tl.store(lse + place_of, tl.where(some, peak + tl.log2(safe), float("-inf")), mask=real)


@triton.jit  # type: ignore[untyped-decorator]
def merge_splits(
    part, lse, lengths, out, out_row, out_token, out_head, capacity,
    HEADS: tl.constexpr, TOKENS: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr,
    SPLITS: tl.constexpr, SPLIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One program: one row, one key-value head, one query line; averages the splits it has."""
    row = tl.program_id(0) // HEADS
    head = tl.program_id(0) % HEADS
    line = tl.program_id(1)
    length = tl.minimum(tl.load(lengths + row).to(tl.int32), capacity)
    depth = tl.arange(0, BLOCK_D)
    wide = depth < WIDTH
    peak = tl.full((1,), float("-inf"), tl.float32)
    total = tl.zeros((1,), tl.float32)
    mix = tl.zeros((BLOCK_D,), tl.float32)
    used = (length + SPLIT - 1) // SPLIT
    for start in range(0, used, BLOCK_S):
        split = start + tl.arange(0, BLOCK_S)
        there = split < used
        place_of = (tl.program_id(0) * SPLITS + split) * BLOCK_M + line
        level = tl.load(lse + place_of, mask=there, other=float("-inf"))
        higher = tl.maximum(peak, tl.max(level, 0))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        share = tl.exp2(level - base)
        fade = tl.exp2(peak - base)
        found = tl.load(
            part + place_of[:, None] * WIDTH + depth[None, :],
            mask=there[:, None] & wide[None, :], other=0.0,
        )  # fmt: skip
        total = total * fade + tl.sum(share, 0)
        mix = mix * fade + tl.sum(found * share[:, None], 0)
        peak = higher
    mix = mix / tl.where(total > 0, total, 1.0)
    token = line // GROUP
    there_at = out + row.to(tl.int64) * out_row + token * out_token
    there_at += (head * GROUP + line % GROUP) * out_head + depth
    tl.store(there_at, mix.to(out.dtype.element_ty), mask=wide)
