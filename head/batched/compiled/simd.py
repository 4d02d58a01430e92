"""Vectors of floats as wide as the processor's registers, for loops compiled by numba.

LLVM does not find the products of a training step on its own: it keeps sums in memory, and uses half of a wide
register. Here both are said: a :data:`LANES`-wide vector is a value, and a tile of sums stays in registers.
docs/decisions/0043 has what that is worth. Importing this module imports numba.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeVar, cast

from llvmlite import ir
from numba import njit, types
from numba.core.cgutils import get_or_insert_function
from numba.core.codegen import get_host_cpu_features
from numba.core.config import CPU_FEATURES
from numba.extending import intrinsic as intrinsic_of_numba
from numba.extending import models, overload, register_model

Function = TypeVar("Function", bound=Callable[..., Any])

intrinsic: Callable[[Any], Any] = intrinsic_of_numba  # none of its types fit what it makes

# A tile of ROWS times two vectors of sums, beside what is multiplied, fills the registers and no more.
LANES, ROWS = (16, 8) if "+avx512f" in (CPU_FEATURES or get_host_cpu_features()) else (8, 4)
# Values of both vectors of a tile.
COLUMNS = 2 * LANES

_FLOAT = ir.FloatType()
_INT = ir.IntType(32)
_VECTOR = ir.VectorType(_FLOAT, LANES)
# Everything of "fast" but that values are finite: a head that diverges must be seen to.
_FREELY = ("reassoc", "nsz", "arcp", "contract", "afn")


def compiled(function: Function) -> Function:
    """Compile with numba when first called, without Python's lock, and keep it for later processes if there is room."""
    options = {"nogil": True, "fastmath": set(_FREELY), "error_model": "numpy"}
    try:
        return cast(Function, njit(function, cache=True, **options))
    except RuntimeError:  # no folder that could be written to
        return cast(Function, njit(function, **options))


class VectorType(types.Type):  # type: ignore[misc]
    """Numba's type of a vector of float32."""

    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


vector = VectorType()
tile = types.UniTuple(vector, 2 * ROWS)


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)


@intrinsic
def load(_: Any, values: Any, place: Any) -> Any:
    """Return the vector that begins at a place of a float32 array."""

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return _load(builder, _element(context, builder, signature.args[0], *given))

    return vector(values, types.intp), build


@intrinsic
def store(_: Any, values: Any, place: Any, what: Any) -> Any:
    """Write a vector to a place of a float32 array."""

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        pointer = _element(context, builder, signature.args[0], *given[:2])
        builder.store(given[2], builder.bitcast(pointer, _VECTOR.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(values, types.intp, vector), build


@intrinsic
def splat(_: Any, value: Any) -> Any:
    """Return a vector of one float32, again and again."""
    return vector(types.float32), lambda context, builder, signature, given: _splat(builder, given[0])


@intrinsic
def root(_: Any, value: Any) -> Any:
    """Return the square root of each value."""
    return vector(vector), lambda context, builder, signature, given: _call(builder, "sqrt", *given)


@intrinsic
def total(_: Any, values: Any) -> Any:
    """Return the sum of a vector's values."""

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kind = ir.FunctionType(_FLOAT, [_FLOAT, _VECTOR])
        function = get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{LANES}f32")
        return builder.call(function, [_FLOAT(0), given[0]], fastmath=_FREELY)

    return types.float32(vector), build


@intrinsic
def where_positive(_: Any, asked: Any, values: Any) -> Any:
    """Return values where others are more than 0 or no number, and 0 elsewhere."""

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        zeros = ir.Constant(_VECTOR, None)
        return builder.select(builder.fcmp_unordered(">", given[0], zeros), given[1], zeros)

    return vector(vector, vector), build


@intrinsic
def no_sums(_: Any) -> Any:
    """Return a tile of zeros: ROWS rows of two vectors each."""

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        zeros = [ir.Constant(_VECTOR, None)] * len(tile)
        return context.make_tuple(builder, tile, zeros)

    return tile(), build


@intrinsic
def add_products(_: Any, sums: Any, factors: Any, place: Any, stride: Any, values: Any, column: Any) -> Any:
    """Return a tile of sums plus an outer product.

    Args:
        sums: the tile.
        factors: float32 array; one is taken for each row of the tile.
        place: of the first of them.
        stride: to the next.
        values: float32 array.
        column: where the two vectors begin that each factor is multiplied with.
    """

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        found, factors, place, stride, values, column = given
        kinds = signature.args
        pair = [
            _load(builder, _element(context, builder, kinds[4], values, start))
            for start in (column, builder.add(column, column.type(LANES)))
        ]
        for row in range(ROWS):
            factor = _splat(builder, builder.load(_element(context, builder, kinds[1], factors, place)))
            place = builder.add(place, stride)
            for which in (0, 1):
                spot = 2 * row + which
                total = _call(builder, "fma", factor, pair[which], builder.extract_value(found, spot))
                found = builder.insert_value(found, total, spot)
        return found

    return tile(tile, factors, types.intp, types.intp, values, types.intp), build


@intrinsic
def store_tile(_: Any, values: Any, place: Any, sums: Any) -> Any:
    """Write a tile to a place of a float32 array, row after row."""

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        values, place, sums = given
        for spot in range(2 * ROWS):
            pointer = _element(
                context, builder, signature.args[0], values, builder.add(place, place.type(spot * LANES))
            )
            total = builder.extract_value(sums, spot)
            builder.store(total, builder.bitcast(pointer, _VECTOR.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(values, types.intp, tile), build


def _arithmetic(name: str) -> Any:
    @intrinsic
    def compute(_: Any, one: Any, other: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            return getattr(builder, name)(*given, flags=_FREELY)

        return vector(vector, vector), build

    def between(one: Any, other: Any) -> Any:
        return compute(one, other)

    def choose(one: Any, other: Any) -> Any:
        return between if isinstance(one, VectorType) and isinstance(other, VectorType) else None

    return choose


for _operator, _name in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    overload(_operator)(_arithmetic(_name))


def _element(context: Any, builder: Any, kind: Any, values: Any, place: Any) -> Any:
    # Not numba's own indexing: it would ask at each access whether the place is negative.
    return builder.gep(context.make_array(kind)(context, builder, values).data, [place])


def _load(builder: Any, pointer: Any) -> Any:
    return builder.load(builder.bitcast(pointer, _VECTOR.as_pointer()), align=4)


def _splat(builder: Any, value: Any) -> Any:
    nothing = ir.Constant(_VECTOR, ir.Undefined)
    first = builder.insert_element(nothing, value, _INT(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_INT, LANES), None))


def _call(builder: Any, name: str, *given: Any) -> Any:
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * len(given))
    return builder.call(get_or_insert_function(builder.module, kind, f"llvm.{name}.v{LANES}f32"), given)
