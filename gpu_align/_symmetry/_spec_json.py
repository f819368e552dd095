"""Specs as JSON documents."""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from gpu_align._errors import SpecError
from gpu_align._symmetry._axis import Axis, shown
from gpu_align._symmetry._parts import Group, NormScale, Phase, Pin
from gpu_align._symmetry._spec import PermutationSpec
from gpu_align._symmetry._tensor_spec import TensorSpec

_FORMAT = "gpu-align/spec"
_VERSION = 2
_READABLE = (1, 2)  # 2 added parents, signs and scales
_MOST_ENTRIES = 2**63
_MOST_AXES = 64  # of a tensor, in torch
_MOST_PIECES = 2**16
"""Of all tensors together; the largest networks have some thousands."""


def spec_to_json(spec: PermutationSpec) -> str:
    """Return a spec as a JSON document."""
    document = {
        "format": _FORMAT,
        "version": _VERSION,
        "origin": spec.origin,
        "groups": {name: _group_to_json(group) for name, group in spec.groups.items()},
        "tensors": {
            name: [axis.to_json() for axis in tensor.axes] for name, tensor in spec.tensors.items()
        },
        "buffers": [name for name, tensor in spec.tensors.items() if not tensor.counted],
        "ties": dict(spec.ties),
        "pins": [[pin.tensor, pin.axis, pin.reason] for pin in spec.pins],
    }
    if spec.norm_scales:
        document["norm_scales"] = [asdict(scale) for scale in spec.norm_scales]
    if spec.outputs:
        document["outputs"] = dict(spec.outputs)
    return json.dumps(document, indent=1)


def spec_from_json(text: str) -> PermutationSpec:
    """Read a spec written by `spec_to_json` or by hand.

    Raises:
        SpecError: the text is not JSON or not a spec.
    """
    try:
        return _spec(_document(text))
    except (RecursionError, OverflowError) as error:
        raise SpecError(
            f"expected a spec as JSON, got one that nests too deep or has too large numbers "
            f"({type(error).__name__}); write it anew with `gpu-align inspect --save-spec`"
        ) from error


def _spec(data: dict[str, Any]) -> PermutationSpec:
    groups = {
        name: _group_from_json(name, entry) for name, entry in _expect(data, "groups", dict).items()
    }
    sizes = {name: group.size for name, group in groups.items()}
    for name, group in groups.items():
        _check_extent(f"group {name!r}", group.size * sizes.get(group.parent or "", 1))
    buffers = set(_names(_expect(data, "buffers", list, optional=True), "buffers"))
    tensors, pieces = {}, 0
    for name, axes in _expect(data, "tensors", dict).items():
        if not isinstance(axes, list):
            raise SpecError(f"tensor {name!r}: expected a list of axes, got {shown(axes)}")
        parsed = tuple(Axis.from_json(axis, sizes) for axis in axes)
        pieces += _checked_pieces(name, parsed)
        if pieces > _MOST_PIECES:
            raise SpecError(
                f"tensor {name!r}: the spec cuts its tensors into more than {_MOST_PIECES} pieces; "
                "join segments that stay fixed"
            )
        tensors[name] = TensorSpec(parsed, counted=name not in buffers)
    ties = _expect(data, "ties", dict, optional=True)
    scales = _expect(data, "norm_scales", list, optional=True)
    return PermutationSpec(
        groups=groups,
        tensors=tensors,
        ties=dict(zip(ties, _names(ties.values(), "ties"), strict=True)),
        pins=tuple(_pin(entry) for entry in _expect(data, "pins", list, optional=True)),
        origin=str(data.get("origin", "")),
        norm_scales=tuple(_norm_scale(entry) for entry in scales),
        outputs=_outputs(_expect(data, "outputs", dict, optional=True)),
    )


def _checked_pieces(name: str, axes: tuple[Axis, ...]) -> int:
    """Return into how many pieces the axes of a tensor cut it.

    Raises:
        SpecError: there are more entries or factors than a tensor can have.
    """
    _check_extent(f"tensor {name!r}", math.prod(axis.size for axis in axes))
    factors = sum(max(map(len, axis.segments), default=0) for axis in axes)
    if factors > _MOST_AXES:
        raise SpecError(
            f"tensor {name!r}: its axes are products of {factors} factors, a tensor has at most "
            f"{_MOST_AXES} axes; join fixed extents"
        )
    return math.prod(len(axis.segments) for axis in axes)


def _check_extent(what: str, size: int) -> None:
    if size >= _MOST_ENTRIES:
        raise SpecError(f"{what}: expected less than 2^63 entries; correct the sizes")


def _document(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError as error:  # numbers of thousands of digits too
        raise SpecError(f"expected a spec as JSON: {error}") from error
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        raise SpecError(f'expected a JSON object with "format": "{_FORMAT}"')
    if data.get("version") not in _READABLE:
        raise SpecError(
            f"the spec has version {shown(data.get('version'))}, this release reads "
            f"{' and '.join(map(str, _READABLE))}"
        )
    return data


def _group_to_json(group: Group) -> int | dict[str, Any]:
    """Return the size, or an object where there is more to say."""
    keys = ("parent", "signed", "scaled", "fixed")
    more = {key: getattr(group, key) for key in keys if getattr(group, key)}
    if group.phase is not None:
        more["phase"] = asdict(group.phase)
    return {"size": group.size, **more} if more else group.size


def _group_from_json(name: str, entry: object) -> Group:
    fields: dict[str, Any] = entry if isinstance(entry, dict) else {"size": entry}
    size = fields.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise SpecError(f"group {name!r} needs a positive number of units, got {shown(size)}")
    kinds = {"size": int, "parent": str, "signed": bool, "scaled": bool, "fixed": bool}
    phase = _phase(name, fields["phase"]) if "phase" in fields else None
    fields = {key: value for key, value in fields.items() if key != "phase"}
    for key, value in fields.items():
        if key not in kinds or not isinstance(value, kinds[key]):
            raise SpecError(
                f"group {name!r}: expected a size, or an object of size (int), parent (name), "
                f"signed, scaled and fixed (true or false) and phase, got {key!r}: {shown(value)}"
            )
    return Group(name, **fields, phase=phase)


def _phase(name: str, entry: object) -> Phase:
    match entry:
        case {"bias": str(bias), "shift": (float() | int()) as shift, **others} if not others:
            if not isinstance(shift, bool):
                return Phase(bias, float(shift))
    raise SpecError(
        f"group {name!r}: expected a phase as an object of bias (name of a tensor) and shift "
        f"(half a period), got {shown(entry)}"
    )


def _names(entries: Iterable[object], key: str) -> list[str]:
    names = []
    for entry in entries:
        if not isinstance(entry, str):
            raise SpecError(f"expected names of tensors in the spec's {key!r}, got {shown(entry)}")
        names.append(entry)
    return names


def _outputs(entries: dict[str, object]) -> dict[str, int]:
    counts = {name: units for name, units in entries.items() if type(units) is int and units >= 0}
    if len(counts) < len(entries):
        raise SpecError(f"expected a number of units for each of the 'outputs', got {entries!r}")
    return counts


def _pin(entry: object) -> Pin:
    match entry:
        case [str(tensor), int(axis), str(reason)]:
            return Pin(tensor, axis, reason)
    raise SpecError(f"expected a pin as [tensor, axis, reason], got {shown(entry)}")


def _norm_scale(entry: object) -> NormScale:
    match entry:
        case {
            "weight": str(weight),
            "bias": (str() | None) as bias,
            "mean": str(mean),
            "variance": str(variance),
            "eps": (float() | int()) as eps,
        }:
            if not isinstance(eps, bool) and 0 <= eps < math.inf:
                return NormScale(weight, bias, mean, variance, float(eps))
    raise SpecError(
        "expected a norm scale as an object of weight, bias (or null), mean, variance (names of "
        f"tensors) and eps, got {shown(entry)}"
    )


def _expect(
    data: dict[str, Any], key: str, kind: Callable[[], Any], *, optional: bool = False
) -> Any:
    if optional and key not in data:
        return kind()
    value = data.get(key)
    if not isinstance(value, kind):  # type: ignore[arg-type]
        raise SpecError(f"the spec's {key!r} must be a JSON {kind.__name__}, got {shown(value)}")
    return value
