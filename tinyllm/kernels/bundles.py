"""Bundles of vectors: what a register-blocked matrix product holds in registers.

A bundle is a tuple of vectors, one for each of N tokens (or several, side by side), to which the
same is done: operations whose name ends in `_each`. LLVM keeps it in registers, as many as the
kind of processor has room for (`processor.py`). What differs by token is read from memory, token
i's operand `stride` elements behind that of token i - 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import types as _types
from numba.core.errors import TypingError

from tinyllm.kernels import emit, processor
from tinyllm.kernels.emit import F32X16, I16, I32, I32X16, LANES, constant
from tinyllm.kernels.layout import GROUP, REST
from tinyllm.kernels.vectors import Emit, f32x16, i32x16, literal, op, operation, stored_type

types: Any = _types  # numba is typed in parts, differently from release to release


def _bundle_op(returns: types.Type, arguments: Sequence[types.Type], n: int, code: Emit) -> Any:
    """As `op`, for a bundle of `n`: `code(builder, i, *values)` makes the vector of token i.

    A bundle among the values is passed as its i-th vector.
    """

    def all_tokens(builder: Any, *values: Any) -> Any:
        result = ir.Constant(ir.ArrayType(returns[0].llvm, n), ir.Undefined)
        for i in range(n):
            mine = [
                builder.extract_value(value, i) if isinstance(kind, types.UniTuple) else value
                for kind, value in zip(arguments, values, strict=True)
            ]
            result = builder.insert_value(result, code(builder, i, *mine), i)
        return result

    return op(returns, arguments, all_tokens)


def _token(builder: Any, offset: Any, stride: Any, i: int) -> Any:
    """Where token i's operand is: offset + i · stride."""
    step = builder.mul(stride, ir.Constant(stride.type, i))
    if step.type != offset.type:
        step = builder.sext(step, offset.type)
    return builder.add(offset, step)


def _operand(builder: Any, data: Any, offset: Any, stride: Any, i: int) -> Any:
    """Token i's scalar, data[offset + i · stride], in every lane."""
    place = builder.gep(data, [_token(builder, offset, stride, i)])
    return emit.splat(builder, builder.load(place))


@operation
def zeros(typing_context, n):  # type: ignore[no-untyped-def]
    """n vectors of float32 zeros; n must be a compile-time constant."""
    del typing_context
    count = literal(n)
    return _bundle_op(
        types.UniTuple(f32x16, count), [n], count, lambda b, i, _: constant(F32X16, 0.0)
    )


@operation
def repeat(typing_context, n, vector):  # type: ignore[no-untyped-def]
    """n times the same vector."""
    del typing_context
    count = literal(n)
    return _bundle_op(types.UniTuple(vector, count), [n, vector], count, lambda b, i, _, v: v)


def _starts(n: Any, starts: Any, offset: Any, nothing: bool) -> Any:
    count = literal(n)

    def code(builder: Any, i: int, size: Any, data: Any, at: Any) -> Any:
        del size
        if nothing:
            return constant(I32X16, 0)
        return _operand(builder, data, at, ir.Constant(at.type, 1), i)

    if starts.dtype != types.int32:
        raise TypingError(f"dot products start with int32, not {starts}")
    return _bundle_op(types.UniTuple(i32x16, count), [n, starts, offset], count, code)


@operation
def start_each(typing_context, n, starts, offset):  # type: ignore[no-untyped-def]
    """n vectors of what a group's dot products begin with: starts[offset + i] for token i."""
    del typing_context
    return _starts(n, starts, offset, nothing=False)


@operation
def q8_starts(typing_context, n, starts, offset):  # type: ignore[no-untyped-def]
    """As `start_each`, for Q8's weights alone.

    `Int8Rows.starts` takes back the 128 that is in every weight; nothing where weights are signed.
    """
    del typing_context
    return _starts(n, starts, offset, nothing=processor.KIND.signed)


def _dots(
    builder: Any, sums: Any, n: int, dot4: Any, weights: Sequence[Any], data: Any, begin: Any
) -> Any:
    """sums[i] += a group's weights · token i's 32 bytes from `begin` on, 4 at a time."""
    totals = [builder.extract_value(sums, i) for i in range(n)]
    for j, vector in enumerate(weights):
        for i in range(n):
            place = builder.add(begin, ir.Constant(begin.type, i * GROUP + 4 * j))
            totals[i] = dot4(builder, totals[i], vector, emit.load(builder, data, place, I32))
    for i, total in enumerate(totals):
        sums = builder.insert_value(sums, total, i)
    return sums


def _dots_of_both(
    builder: Any, sums: Any, n: int, dot4: Any, weights: Sequence[Any], values: Any, rest: Any,
    begin: Any,
) -> Any:  # fmt: skip
    """sums[i] += a group's weights · token i's 32 activations of two bytes, 254 · value + rest.

    Where the registers hold twice n sums, each vector of weights is used for both bytes at once;
    elsewhere the sums with the values become those of both, in the registers that they are in.
    """
    if processor.KIND.words:
        return _dots_of_words(builder, sums, n, weights, values, rest, begin)
    zero = constant(I32X16, 0)
    high = ir.Constant(sums.type, [zero] * n)
    if processor.KIND.sums < 2 * n:
        high = _dots(builder, high, n, dot4, weights, values, begin)
        return _dots(builder, _joined(builder, high, sums, n), n, dot4, weights, rest, begin)
    for j, vector in enumerate(weights):
        place = builder.add(begin, ir.Constant(begin.type, 4 * j))
        high = _dots(builder, high, n, dot4, [vector], values, place)
        sums = _dots(builder, sums, n, dot4, [vector], rest, place)
    return _joined(builder, high, sums, n)


def _dots_of_words(
    builder: Any, sums: Any, n: int, weights: Sequence[Any], values: Any, rest: Any, begin: Any
) -> Any:
    """As `_dots_of_both`, by products of 16 bits, which 254 · 127 + 127 is within: half as many."""
    words = ir.VectorType(I16, GROUP // 2)
    of_weights = [processor.low_and_high_bytes(builder, vector) for vector in weights]
    for i in range(n):
        place = builder.add(begin, ir.Constant(begin.type, i * GROUP))
        high, low = (
            processor.low_and_high_bytes(builder, emit.load(builder, data, place, words))
            for data in (values, rest)
        )
        parts = constant(words, REST)
        total = builder.extract_value(sums, i)
        for half in range(2):  # bytes 0, 2, 4 … and 1, 3, 5 …
            x = builder.add(builder.mul(high[half], parts), low[half])
            x = builder.bitcast(x, ir.VectorType(I32, GROUP // 4))
            for j, w in enumerate(of_weights):
                pair = builder.shuffle_vector(x, x, constant(I32X16, j))
                pair = builder.bitcast(pair, w[half].type)
                total = builder.add(total, processor.sums_of_two(builder, w[half], pair))
        sums = builder.insert_value(sums, total, i)
    return sums


def _joined(builder: Any, high: Any, low: Any, n: int) -> Any:
    """254 · high[i] + low[i]."""
    parts = constant(I32X16, REST)
    for i in range(n):
        product = builder.mul(builder.extract_value(high, i), parts)
        low = builder.insert_value(low, builder.add(product, builder.extract_value(low, i)), i)
    return low


def _q8_weights(builder: Any, packed: Any, begin: Any) -> list[Any]:
    """A group's weights of a Q8: 8 vectors, in the form that this processor multiplies."""
    vectors = []
    for j in range(GROUP // 4):
        place = builder.add(begin, ir.Constant(begin.type, 4 * LANES * j))
        vector = emit.load(builder, packed, place, I32X16)
        if processor.KIND.signed:  # byte - 128: the top bit flipped
            vector = builder.xor(vector, constant(I32X16, 0x80808080))
        vectors.append(vector)
    return vectors


def _q4_weights(builder: Any, packed: Any, begin: Any) -> list[Any]:
    """A group's nibbles of a Q4 as bytes: 8 vectors, of inputs 0 … 15 (low nibbles) and on."""
    mask, four = constant(I32X16, 0x0F0F0F0F), constant(I32X16, 4)
    low, high = [], []
    for j in range(GROUP // 8):
        place = builder.add(begin, ir.Constant(begin.type, 4 * LANES * j))
        both = emit.load(builder, packed, place, I32X16)
        low.append(builder.and_(both, mask))
        high.append(builder.and_(builder.lshr(both, four), mask))
    return low + high


def _check_dots(acc: Any, weights: Any, rows: Any) -> None:
    if acc.dtype != i32x16 or weights.dtype != types.uint8 or rows.dtype != types.int8:
        raise TypingError(f"dots of {weights} and {rows} can't be added to {acc}")


@operation
def q8_dots(typing_context, acc, weights, at, rows, offset):  # type: ignore[no-untyped-def]
    """acc[i] += a group of a Q8 (its bytes from `at` on) · token i's 32 activations, exactly.

    rows: int8, token i's from offset + 32 · i on; each is -127 … 127.
    """
    del typing_context
    _check_dots(acc, weights, rows)
    dot4 = processor.KIND.dot4

    def code(builder: Any, sums: Any, packed: Any, begin: Any, data: Any, to: Any) -> Any:
        vectors = _q8_weights(builder, packed, begin)
        return _dots(builder, sums, acc.count, dot4, vectors, data, to)

    return op(acc, [acc, weights, at, rows, offset], code)


@operation
def q4_dots(typing_context, acc, weights, at, rows, offset):  # type: ignore[no-untyped-def]
    """As `q8_dots`, for a group of a Q4: low nibbles are inputs 0 … 15, high ones 16 … 31."""
    del typing_context
    _check_dots(acc, weights, rows)
    dot4 = processor.KIND.dot4_nibbles

    def code(builder: Any, sums: Any, packed: Any, begin: Any, data: Any, to: Any) -> Any:
        vectors = _q4_weights(builder, packed, begin)
        return _dots(builder, sums, acc.count, dot4, vectors, data, to)

    return op(acc, [acc, weights, at, rows, offset], code)


@operation
def q8_dots_of_both(typing_context, acc, weights, at, values, rest, offset):  # type: ignore[no-untyped-def]
    """As `q8_dots`, with activations of two bytes: 254 · values + rest."""
    del typing_context
    _check_dots(acc, weights, values)
    _check_dots(acc, weights, rest)
    dot4 = processor.KIND.dot4

    def code(b: Any, sums: Any, packed: Any, begin: Any, *of_tokens: Any) -> Any:
        vectors = _q8_weights(b, packed, begin)
        return _dots_of_both(b, sums, acc.count, dot4, vectors, *of_tokens)

    return op(acc, [acc, weights, at, values, rest, offset], code)


@operation
def q4_dots_of_both(typing_context, acc, weights, at, values, rest, offset):  # type: ignore[no-untyped-def]
    """As `q4_dots`, with activations of two bytes: 254 · values + rest."""
    del typing_context
    _check_dots(acc, weights, values)
    _check_dots(acc, weights, rest)
    dot4 = processor.KIND.dot4_nibbles

    def code(b: Any, sums: Any, packed: Any, begin: Any, *of_tokens: Any) -> Any:
        vectors = _q4_weights(b, packed, begin)
        return _dots_of_both(b, sums, acc.count, dot4, vectors, *of_tokens)

    return op(acc, [acc, weights, at, values, rest, offset], code)


def _fma_all(builder: Any, sums: Any, three: Callable[[int], tuple[Any, Any, Any]]) -> Any:
    """A bundle of a · b + c, where `three` gives the a, b and c of the i-th."""
    n = sums.type.count
    for i, result in enumerate(processor.fma_each(builder, (three(i) for i in range(n)))):
        sums = builder.insert_value(sums, result, i)
    return sums


@operation
def fma_each(typing_context, acc, weights, rows, offset, stride):  # type: ignore[no-untyped-def]
    """acc[i] += weights × rows[offset + i · stride], float32, rounded once.

    `weights` is one vector, or a run of them; then `acc` has as many for each token.
    """
    del typing_context
    several = isinstance(weights, types.UniTuple)
    vector, columns = (weights.dtype, weights.count) if several else (weights, 1)
    if acc.dtype != f32x16 or vector != f32x16 or rows.dtype != types.float32:
        raise TypingError(f"fma_each cannot add {weights} × {rows} to {acc}")

    def code(builder: Any, all_: Any, run: Any, data: Any, at: Any, step: Any) -> Any:
        def three(i: int) -> tuple[Any, Any, Any]:
            w = builder.extract_value(run, i % columns) if several else run
            x = _operand(builder, data, at, step, i // columns)
            return w, x, builder.extract_value(all_, i)

        return _fma_all(builder, all_, three)

    return op(acc, [acc, weights, rows, offset, stride], code)


@operation
def fma_rows(typing_context, acc, left, at_left, right, at_right, stride):  # type: ignore[no-untyped-def]
    """acc[4i + j] += sixteen of row i of `left` × those of row j of `right`, four rows each.

    Row i begins `stride` elements behind row i - 1, in both.
    """
    del typing_context
    if acc.count != LANES or {left.dtype, right.dtype} != {types.float32}:
        raise TypingError(f"fma_rows cannot add {left} × {right} to {acc}")

    def code(builder: Any, sums: Any, a: Any, to_a: Any, b: Any, to_b: Any, step: Any) -> Any:
        rows = [
            [emit.load(builder, data, _token(builder, at, step, i), F32X16) for i in range(4)]
            for data, at in ((a, to_a), (b, to_b))
        ]

        def three(n: int) -> tuple[Any, Any, Any]:
            return rows[0][n // 4], rows[1][n % 4], builder.extract_value(sums, n)

        return _fma_all(builder, sums, three)

    return op(acc, [acc, left, at_left, right, at_right, stride], code)


@operation
def store_sums(typing_context, bundle, array, offset, stride):  # type: ignore[no-untyped-def]
    """array[offset + i · stride + j] = all lanes of bundle[4i + j], added up halves onto halves.

    Two vectors at a time become one: half as many lanes are left of each.
    """
    del typing_context
    if bundle.count != LANES or array.dtype != types.float32:
        raise TypingError(f"store_sums cannot write {bundle} to {array}")

    def code(builder: Any, values: Any, data: Any, at: Any, step: Any) -> None:
        vectors = [builder.extract_value(values, i) for i in range(LANES)]
        size = LANES  # lanes that belong together
        while len(vectors) > 1:
            first = [lane for lane in range(2 * LANES) if lane % size < size // 2]
            second = [lane + size // 2 for lane in first]
            vectors = [
                builder.fadd(
                    *(builder.shuffle_vector(a, b, ir.Constant(I32X16, part))
                      for part in (first, second))
                )
                for a, b in zip(vectors[::2], vectors[1::2], strict=True)
            ]  # fmt: skip
            size //= 2
        for i, part in enumerate(emit.cut(builder, vectors[0], 4)):
            emit.store(builder, part, data, _token(builder, at, step, i))

    return op(types.void, [bundle, array, offset, stride], code)


@operation
def add_each(typing_context, left, right):  # type: ignore[no-untyped-def]
    """left[i] + right[i]."""
    del typing_context
    return _bundle_op(left, [left, right], left.count, lambda b, i, x, y: b.fadd(x, y))


@operation
def scale_each(typing_context, acc, dots, weights, rows, offset):  # type: ignore[no-untyped-def]
    """acc[i] += float(dots[i]) × (weights × rows[offset + i]): a group's dots into the sums."""
    del typing_context

    def code(builder: Any, sums: Any, all_dots: Any, w: Any, data: Any, at: Any) -> Any:
        def three(i: int) -> tuple[Any, Any, Any]:
            scale = builder.fmul(w, _operand(builder, data, at, ir.Constant(at.type, 1), i))
            dot = builder.extract_value(all_dots, i)
            return builder.sitofp(dot, F32X16), scale, builder.extract_value(sums, i)

        return _fma_all(builder, sums, three)

    return op(acc, [acc, dots, weights, rows, offset], code)


@operation
def load_each(typing_context, n, width, array, offset, stride):  # type: ignore[no-untyped-def]
    """n tokens of `width` vectors: token i's are array[offset + i · stride : … + 16 · width]."""
    del typing_context
    columns = literal(width)
    count = literal(n) * columns

    def code(builder: Any, i: int, _n: Any, _w: Any, data: Any, at: Any, step: Any) -> Any:
        at = _token(builder, at, step, i // columns)
        at = builder.add(at, ir.Constant(at.type, i % columns * LANES))
        return emit.load(builder, data, at, F32X16)

    if array.dtype != types.float32:
        raise TypingError(f"load_each reads float32, not {array}")
    arguments = [n, width, array, offset, stride]
    return _bundle_op(types.UniTuple(f32x16, count), arguments, count, code)


@operation
def mul_each(typing_context, bundle, width, rows, offset, stride):  # type: ignore[no-untyped-def]
    """Token i's `width` vectors, each × rows[offset + i · stride]."""
    del typing_context
    columns = literal(width)

    def code(builder: Any, i: int, v: Any, _w: Any, data: Any, at: Any, step: Any) -> Any:
        return builder.fmul(v, _operand(builder, data, at, step, i // columns))

    return _bundle_op(bundle, [bundle, width, rows, offset, stride], bundle.count, code)


@operation
def store_each(typing_context, bundle, width, array, offset, stride):  # type: ignore[no-untyped-def]
    """The reverse of `load_each`."""
    del typing_context
    columns = literal(width)

    def code(builder: Any, values: Any, _w: Any, data: Any, at: Any, step: Any) -> None:
        for i in range(bundle.count):
            place = builder.add(at, ir.Constant(at.type, i % columns * LANES))
            emit.store(builder, builder.extract_value(values, i), data, place)
            if i % columns == columns - 1:
                at = builder.add(at, step)

    if array.dtype != types.float32:
        raise TypingError(f"store_each writes float32, not {array}")
    return op(types.void, [bundle, width, array, offset, stride], code)


@operation
def load_run(typing_context, count, array, offset):  # type: ignore[no-untyped-def]
    """`count` neighbouring vectors, array[offset : offset + 16 · count]; as `load`."""
    del typing_context
    n, stored = literal(count), stored_type(array)

    def code(builder: Any, _n: Any, data: Any, at: Any) -> Any:
        run = ir.Constant(ir.ArrayType(F32X16, n), ir.Undefined)
        for i in range(n):
            place = builder.add(at, ir.Constant(at.type, i * LANES))
            value = emit.load(builder, data, place, stored)
            value = value if stored == F32X16 else processor.widen_halves(builder, value)
            run = builder.insert_value(run, value, i)
        return run

    return op(types.UniTuple(f32x16, n), [count, array, offset], code)
