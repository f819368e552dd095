"""Device code of one term of a row-distance problem: the gather and the products (Triton)."""

import triton
import triton.language as tl

from ._descriptors import (
    N_PLANES,
    T_INNER,
    T_LENGTH,
    T_MODEL_STEP,
    T_NEGATIVE,
    T_SOURCE,
    T_SOURCE_STRIDE,
    T_TARGET,
    T_TARGET_STRIDE,
    T_U,
    T_U_STEP,
    T_U_STRIDE,
    T_V,
    T_V_SIZE,
    T_V_STEP,
    T_V_STRIDE,
)


@triton.jit
def tile_of(
    place: tl.tensor,
    size: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tuple:
    """Return the rows [BLOCK_M] and columns [BLOCK_N] of a tile of a matrix.

    Tiles run in bands of 8 rows of tiles, so that neighbours share rows and columns.
    """
    down, across = tl.cdiv(size, BLOCK_M), tl.cdiv(size, BLOCK_N)
    band = place // (8 * across)
    height = tl.minimum(down - 8 * band, 8)
    within = place - band * 8 * across
    i = (8 * band + within % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = (within // height) * BLOCK_N + tl.arange(0, BLOCK_N)
    return i, j


@triton.jit
def source_rows(
    u_ptr: tl.tensor,
    v_ptr: tl.tensor,
    p: tl.tensor,
    q: tl.tensor,
    r: tl.tensor,
    k: tl.tensor,
    u_end: tl.tensor,
    v_end: tl.tensor,
    u_stride: tl.tensor,
    v_stride: tl.tensor,
    negative: tl.tensor,
) -> tl.tensor:
    """Return the rows of the source at positions k = (p, q, r); negatives come `negative` later."""
    u = tl.load(u_ptr + p, mask=k < u_end, other=0).to(tl.int32)
    v = tl.load(v_ptr + q, mask=k < v_end, other=0).to(tl.int32)
    sign = (u ^ v) >> 31
    u = u ^ (u >> 31)
    v = v ^ (v >> 31)
    return u * u_stride + v * v_stride + r + (sign & negative)


@triton.jit
def add_product(
    total: tl.tensor,
    a_ptr: tl.tensor,
    b_ptr: tl.tensor,
    a_mask: tl.tensor,
    b_mask: tl.tensor,
    a_plane: tl.tensor,
    b_plane: tl.tensor,
) -> tl.tensor:
    """Return the sum plus one product, of float32 weights by those of their planes."""
    a = tl.load(a_ptr, mask=a_mask, other=0.0)
    b = tl.load(b_ptr, mask=b_mask, other=0.0)
    a_mid = tl.load(a_ptr + a_plane, mask=a_mask, other=0.0)
    b_mid = tl.load(b_ptr + b_plane, mask=b_mask, other=0.0)
    a_low = tl.load(a_ptr + 2 * a_plane, mask=a_mask, other=0.0)
    b_low = tl.load(b_ptr + 2 * b_plane, mask=b_mask, other=0.0)
    part = tl.dot(a, b_low)
    part = tl.dot(a_mid, b_mid, part)
    part = tl.dot(a_low, b, part)
    part = tl.dot(a, b_mid, part)
    part = tl.dot(a_mid, b, part)
    part = tl.dot(a, b, part)
    return total + part


@triton.jit
def add_term(
    total: tl.tensor,
    term: tl.tensor,
    w: tl.tensor,
    model: tl.tensor,
    i: tl.tensor,
    j: tl.tensor,
    units: tl.tensor,
    padded: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    BLOCK_K: tl.constexpr,
) -> tl.tensor:
    """Return the sum plus the steps [begin, end) of one term."""
    length, inner = tl.load(term + T_LENGTH).to(tl.int32), tl.load(term + T_INNER).to(tl.int32)
    a_stride = tl.multiple_of(tl.load(term + T_TARGET_STRIDE), 16)
    b_stride = tl.multiple_of(tl.load(term + T_SOURCE_STRIDE), 16)
    a_plane = tl.multiple_of(a_stride // N_PLANES, 16)
    b_plane = tl.multiple_of(b_stride // N_PLANES, 16)
    a_ptr = tl.multiple_of(tl.load(term + T_TARGET).to(tl.pointer_type(tl.bfloat16)), 16)
    b_ptr = tl.multiple_of(tl.load(term + T_SOURCE).to(tl.pointer_type(tl.bfloat16)), 16)
    a_ptr += i[:, None] * a_stride
    b_ptr += model * tl.multiple_of(tl.load(term + T_MODEL_STEP), 16) + j[None, :]
    negative = tl.load(term + T_NEGATIVE).to(tl.int32)
    u_stride = tl.load(term + T_U_STRIDE).to(tl.int32)
    v_stride = tl.load(term + T_V_STRIDE).to(tl.int32)
    v_size = tl.load(term + T_V_SIZE).to(tl.int32)
    u_ptr = tl.load(term + T_U).to(tl.pointer_type(tl.int64))
    v_ptr = tl.load(term + T_V).to(tl.pointer_type(tl.int64))
    u_end = tl.where(u_ptr.to(tl.int64) != 0, length, 0)
    v_end = tl.where(v_ptr.to(tl.int64) != 0, length, 0)
    u_ptr += w * tl.load(term + T_U_STEP)
    v_ptr += w * tl.load(term + T_V_STEP)
    padded_length = tl.multiple_of(a_plane.to(tl.int32), 16)
    # A position is (p, q, r), digits of radix v_size and inner, counted on without dividing. The
    # index vectors of a step are read a step before.
    r_step, p_step = BLOCK_K % inner, BLOCK_K // inner
    q_step, p_step = p_step % v_size, p_step // v_size
    k = begin * BLOCK_K + tl.arange(0, BLOCK_K)
    r, p = k % inner, k // inner
    q, p = p % v_size, p // v_size
    row = source_rows(u_ptr, v_ptr, p, q, r, k, u_end, v_end, u_stride, v_stride, negative)
    for start in range(begin * BLOCK_K, end * BLOCK_K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        r += r_step
        carry = r >= inner
        r = tl.where(carry, r - inner, r)
        q += q_step + carry.to(tl.int32)
        carry = q >= v_size
        q = tl.where(carry, q - v_size, q)
        p += p_step + carry.to(tl.int32)
        next_row = source_rows(
            u_ptr, v_ptr, p, q, r, k + BLOCK_K, u_end, v_end, u_stride, v_stride, negative
        )
        total = add_product(
            total,
            a_ptr + k[None, :],
            b_ptr + row[:, None] * b_stride,
            (i[:, None] < units) & (k[None, :] < padded_length),
            (k[:, None] < length) & (j[None, :] < padded),
            a_plane,
            b_plane,
        )
        row = next_row
    return total
