"""What is worth saying of the options that a command was given."""

from collections.abc import Iterator, Mapping
from typing import Any

from gpu_align._errors import GpuAlignError, ModelError


def warnings_of(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield what may be a mistake in options that can be used."""
    for text in options.get("input_shape") or ():
        sizes = _sizes(text)
        if sizes[0] == "1" and len(sizes) > 1:
            yield (
                f"--input-shape {text}: a batch of 1, which a model may treat in its own way, so "
                "that symmetries are lost or wrong; make the first size 2"
            )


def advised(error: GpuAlignError, options: Mapping[str, Any]) -> GpuAlignError:
    """Return the error, with the option that mends it if that can be told."""
    floats = [text for text in options.get("input_shape") or () if ":" not in text]
    if isinstance(error, ModelError) and "'indices'" in str(error) and floats:
        return ModelError(
            f"{error}\n--input-shape {floats[0]} gives floats; tokens below VOCAB are "
            f"--input-shape {floats[0]}:int64:VOCAB"
        )
    return error


def _sizes(text: str) -> list[str]:
    return [size.strip() for size in text.rpartition("=")[2].partition(":")[0].split(",")]
