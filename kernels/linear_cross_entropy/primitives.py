"""Device functions shared by the kernels: one logits tile, its softcap, the online log-sum-exp.

A *logits tile* is z[n0:n0+BLOCK_N, v0:v0+BLOCK_V] = input @ linear_weight.T (+ bias), accumulated in fp32
registers and never written anywhere. The forward kernel and the logit-gradient kernel both walk over tiles
and do something to each; what they share is here, so that both see the same logits.

`TMA` picks how operand tiles arrive: True, matrices are tensor descriptors and the copy engine zero-fills
what lies outside them; False, they are pointers and masks do the same. Either way padding rows and columns
contribute zeros to a product, which the callers rely on.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
# ln 2 in two parts: the first has 15 bits, so that its product with an exponent is exact in fp32.
LN_2_HIGH = tl.constexpr(0.693145751953125)
LN_2_LOW = tl.constexpr(1.42860682030941723e-06)


@triton.jit
def load_tile(
    matrix,  # (num_rows, num_cols): descriptor or pointer
    row,
    col,
    num_rows,
    num_cols,
    stride,
    TMA: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """matrix[row:row+ROWS, col:col+COLS], zeros outside."""
    if TMA:
        tile = matrix.load([row, col])
    else:
        rows = row + tl.arange(0, ROWS)
        cols = col + tl.arange(0, COLS)
        # int64: rows * stride passes 2**31 from a 1M x 2304 matrix on.
        offsets = rows.to(tl.int64)[:, None] * stride + cols[None, :]
        mask = (rows < num_rows)[:, None] & (cols < num_cols)[None, :]
        tile = tl.load(matrix + offsets, mask=mask, other=0.0)
    return tile


@triton.jit
def store_tile(
    matrix,  # (num_rows, num_cols): descriptor or pointer
    row,
    col,
    tile,  # (ROWS, COLS)
    num_rows,
    num_cols,
    stride,
    TMA: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """matrix[row:row+ROWS, col:col+COLS] = tile, clipped to the matrix and rounded to its dtype."""
    if TMA:
        matrix.store([row, col], tile.to(matrix.dtype))
    else:
        rows = row + tl.arange(0, ROWS)
        cols = col + tl.arange(0, COLS)
        offsets = rows.to(tl.int64)[:, None] * stride + cols[None, :]
        mask = (rows < num_rows)[:, None] & (cols < num_cols)[None, :]
        tl.store(matrix + offsets, tile.to(matrix.dtype.element_ty), mask=mask)


@triton.jit
def add_product(total, lost, a, b, PRECISE: tl.constexpr):
    """(total + a @ b, lost), accumulated in fp32.

    PRECISE, for fp32 operands: one step's product at a time, added with Kahan's compensation; `lost` is what the
    roundings of `total` have left out so far, zeros to begin with. A plain chain over D rounds D times, where cuBLAS
    splits: it had three times eager's error.
    """
    # "ieee" matters to fp32 operands only: TF32 would keep 11 bits of each.
    if PRECISE:
        step = tl.dot(a, b, input_precision="ieee") - lost
        new_total = total + step
        lost = (new_total - total) - step
    else:
        new_total = tl.dot(a, b, total, input_precision="ieee")
    return new_total, lost


@triton.jit
def logits_tile(
    input,  # (N, D)
    weight,  # (V, D)
    bias,  # (V,), unused without HAS_BIAS
    row,
    col,
    N,
    V,
    D,
    stride_input,
    stride_weight,
    HAS_BIAS: tl.constexpr,
    PRECISE: tl.constexpr,
    TMA: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """z[row:row+BLOCK_N, col:col+BLOCK_V] in fp32; exactly 0 in padding columns."""
    z = tl.zeros((BLOCK_N, BLOCK_V), dtype=tl.float32)
    lost = tl.zeros((BLOCK_N, BLOCK_V), dtype=tl.float32)
    for d in range(0, D, BLOCK_D):
        e = load_tile(input, row, d, N, D, stride_input, TMA, BLOCK_N, BLOCK_D)
        c = load_tile(weight, col, d, V, D, stride_weight, TMA, BLOCK_V, BLOCK_D)
        z, lost = add_product(z, lost, e, c.T, PRECISE)
    if HAS_BIAS:
        cols = col + tl.arange(0, BLOCK_V)
        z += tl.load(bias + cols, mask=cols < V, other=0.0).to(tl.float32)[None, :]
    return z


@triton.jit
def accurate_exp(x):
    """exp(x) within 1 ulp for x in [-87, 88]; 0 below.

    The hardware's exp2 is off by 2 ulp, and the rounding of its argument x * LOG2_E by as many as x has binary digits.
    Invisible beside bf16 and fp16 operands, but with fp32 operands p - 1/V and p_y - 1 cancel down to that error.
    exp(x) = 2**n * exp(r) with |r| <= ln(2) / 2, where the Taylor polynomial of degree 7 is good to 2**-27.
    """
    underflows = x < -87.0
    x = tl.where(underflows, -87.0, x)
    n = tl.floor(x * LOG2_E + 0.5)
    r = (x - n * LN_2_HIGH) - n * LN_2_LOW
    p = r * (1.0 / 5040.0) + 1.0 / 720.0
    p = p * r + 1.0 / 120.0
    p = p * r + 1.0 / 24.0
    p = p * r + 1.0 / 6.0
    p = p * r + 0.5
    p = p * r * r + r + 1.0
    power = ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return tl.where(underflows, 0.0, p * power)


@triton.jit
def capped(z, softcap, PRECISE: tl.constexpr):
    """(s, ds/dz) with s = softcap * tanh(z / softcap) and ds/dz = 1 - (s / softcap)**2.

    Written with e = exp(-2|x|), x = z / softcap, because the interpreter has no libdevice:
    tanh|x| = (1 - e) / (1 + e), and the derivative 4e / (1 + e)**2 keeps its relative accuracy where tanh
    saturates. PRECISE, for fp32 operands, rounds every step once. There the derivative is (1 - t)(1 + t) as long as
    that cancels less than the roundings of the other form add up to; and t near zero, where 1 - e cancels to an
    absolute error of 1e-7 * softcap, the odd Taylor polynomial.
    """
    if PRECISE:
        x = tl.div_rn(z, softcap)
        e = accurate_exp(-2.0 * tl.abs(x))
        t = tl.div_rn(1.0 - e, 1.0 + e)
    else:
        x = z * (1.0 / softcap)
        e = tl.exp2(tl.abs(x) * (-2.0 * LOG2_E))
        q = 1.0 / (1.0 + e)
        t = (1.0 - e) * q
        slope = 4.0 * e * q * q
    t = tl.where(x < 0, -t, t)
    if PRECISE:
        squared = x * x
        series = squared * -0.008863235529902197 + 0.021869488536155203
        series = series * squared - 0.05396825396825397
        series = series * squared + 0.13333333333333333
        series = series * squared - 0.3333333333333333
        t = tl.where(squared < 0.09, x + x * squared * series, t)
        slope = tl.where(squared < 0.6, (1.0 - t) * (1.0 + t), tl.div_rn(4.0 * e, (1.0 + e) * (1.0 + e)))
        # Not softcap * t: the compiler fuses that into a later s - maximum, one term rounded and the other not, and
        # the largest logit is then off its own maximum by up to half an ulp of it, 1e-6.
        s = tl.fma(t, softcap + tl.zeros_like(t), tl.zeros_like(t))
    else:
        s = softcap * t
    return s, slope


@triton.jit
def scaled_maximum(maximum, PRECISE: tl.constexpr):
    """(hi, c) such that exp(z - maximum) = shifted_exp(z, hi) * c, at full accuracy; one pair a row."""
    if PRECISE:
        hi, c = maximum, tl.full(maximum.shape, 1.0, tl.float32)
    else:
        hi = maximum * LOG2_E
        c = tl.exp2(-tl.fma(maximum, LOG2_E, -hi))
    return hi, c


@triton.jit
def shifted_exp(z, hi, PRECISE: tl.constexpr):
    """exp(z - maximum), but for a factor a row (scaled_maximum): hi (rows,), z (rows, columns).

    PRECISE forms z - maximum and takes accurate_exp of it. Otherwise one fused multiply-add does both. There the
    rounding of hi (2e-6 at a maximum of 30) would be an error of every probability, and swamp p_y - 1 in a confident
    token: scaled_maximum's c = 2**(hi - maximum * LOG2_E) undoes it.
    """
    if PRECISE:  # noqa: SIM108 - two kernels, not two values
        result = accurate_exp(z - hi[:, None])
    else:
        result = tl.exp2(tl.fma(z, LOG2_E, -hi[:, None]))
    return result


@triton.jit
def logsumexp_update(maximum, total, lost, z, PRECISE: tl.constexpr):
    """Fold the columns of z into a running (maximum, total), one pair a row: total = sum exp(z - maximum).

    `lost`, zeros to begin with: what the roundings of total left out so far. In a confident token total is 1 plus very
    little, a little more with every tile, and 1 - p_y is that little.
    """
    new_maximum = tl.maximum(maximum, tl.max(z, axis=1))
    # A bias of -inf masks a class; where it masks all so far, z - new_maximum would be inf - inf.
    finite = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
    scale = accurate_exp(maximum - finite)
    hi, c = scaled_maximum(finite, PRECISE)
    step = tl.sum(shifted_exp(z, hi, PRECISE), axis=1) * c - lost * scale
    total = total * scale
    new_total = total + step
    return new_maximum, new_total, (new_total - total) - step
