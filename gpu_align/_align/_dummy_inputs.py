"""Example inputs for a model of Hugging Face transformers, of the sizes in its configuration."""

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

_BATCH = 2
_TOKENS = 12
_DECODER_TOKENS = 7
_PIXELS = 64
_FRAMES = 100  # of a spectrum


def dummy_inputs(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Go through inputs that a model may take, the likeliest first: a batch of two, no length 1.

    Args:
        module: a `PreTrainedModel`.

    Yields:
        Keyword arguments.
    """
    model: Any = module
    takes = inspect.signature(model.forward).parameters
    main = model.main_input_name
    made = {
        name: value
        for name, make in _MAKERS.items()
        if name in takes and (value := make(model.config)) is not None
    }
    first = {main: made[main]} if main in made else {}
    decoder = {}
    if "decoder_input_ids" in takes and getattr(model.config, "is_encoder_decoder", False):
        tokens = _tokens(model.config, _DECODER_TOKENS, decoder=True)
        decoder = {} if tokens is None else {"decoder_input_ids": tokens}
    if first:
        yield first | decoder
        if decoder:
            yield first
    for name, value in made.items():
        if name != main:
            yield first | {name: value} | decoder
    yield made | decoder
    own = getattr(model, "dummy_inputs", None)
    if isinstance(own, dict):
        yield {name: value for name, value in own.items() if isinstance(value, Tensor)}


def _tokens(config: Any, length: int = _TOKENS, *, decoder: bool = False) -> Tensor | None:
    """Return tokens [batch, length] that are not special, but for the end at the end."""
    text = config.get_text_config(decoder=True) if decoder else config.get_text_config()
    words = getattr(text, "vocab_size", None)
    if not isinstance(words, int) or words < 1:
        return None
    special = {v for name, v in vars(text).items() if name.endswith("token_id")}
    plain = [token for token in range(words) if token not in special] or list(range(words))
    places = getattr(text, "max_position_embeddings", None)
    if isinstance(places, int) and places > 0:
        length = min(length, max(places - 4, 2))
    drawn = torch.randint(len(plain), (_BATCH, length), device="cpu")
    tokens = torch.tensor(plain, device="cpu")[drawn]
    end = getattr(text, "eos_token_id", None)
    if isinstance(end, int) and 0 <= end < words and not decoder:
        tokens[:, -1] = end
    return tokens


def _pixels(config: Any) -> Tensor:
    """Return images [batch, channels, height, width], or clips with frames before the channels."""
    size = _first(config, "image_size", _PIXELS)
    if isinstance(size, dict):
        size = (size["height"], size["width"])
    height, width = (size, size) if isinstance(size, int) else size
    frames = _first(config, "num_frames", None)
    channels = _first(config, "num_channels", 3)
    return torch.randn(
        _BATCH, *([] if frames is None else [frames]), channels, height, width, device="cpu"
    )


def _wave(config: Any) -> Tensor:
    """Return sound [batch, time], or a spectrum [batch, frames, bins] of a fixed length."""
    frames, bins = _first(config, "max_length", None), _first(config, "num_mel_bins", None)
    strides = _first(config, "conv_stride", None)
    if strides is None and isinstance(frames, int) and isinstance(bins, int):
        return torch.randn(_BATCH, frames, bins, device="cpu")
    return torch.randn(_BATCH, math.prod(strides or [320]) * (_TOKENS + 2), device="cpu")


def _spectrum(config: Any) -> Tensor:
    """Return a spectrum [batch, bins, frames] as Whisper reads it, else [batch, frames, bins]."""
    frames = _first(config, "max_source_positions", None)
    bins = _first(config, "num_mel_bins", None)
    if isinstance(frames, int) and isinstance(bins, int):
        return torch.randn(_BATCH, bins, 2 * frames, device="cpu")
    names = ("input_feat_per_channel", "feature_projection_input_dim", "num_mel_bins")
    wide = next((n for name in names if (n := _first(config, name, None)) is not None), 80)
    return torch.randn(_BATCH, _FRAMES, wide, device="cpu")


_MAKERS: dict[str, Callable[[Any], Tensor | None]] = {
    "input_ids": _tokens,
    "pixel_values": _pixels,
    "input_values": _wave,
    "input_features": _spectrum,
}


def _first(config: Any, name: str, default: Any) -> Any:
    """Return an entry of a configuration, or else of one inside it."""
    value = getattr(config, name, None)
    if value is not None:
        return value
    inner = [part for part in vars(config).values() if hasattr(part, "to_diff_dict")]
    found = (_first(part, name, None) for part in inner)
    return next((value for value in found if value is not None), default)
