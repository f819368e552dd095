"""Checkpoints whose tensors are not the weights: quantised ones, and adapters."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor

from gpu_align._checkpoint._refusal import unreadable
from gpu_align._errors import CheckpointError

# Part of a name -> who writes it.
_QUANTISED = {
    r"\._packed_params(\.|$)": "torch.ao.quantization",
    r"\.qweight$": "GPTQ or AWQ",
    r"\.weight_packed$": "compressed-tensors",
    r"\.weight\.(absmax|quant_map|quant_state\.|nested_absmax)": "bitsandbytes, 4 bits",
    r"\.(SCB|weight_format)$": "bitsandbytes, 8 bits",
    r"\.weight_scale(_inv)?$": "scaled integers or float8",
    r"\.(W_q|Wq_packed)$": "HQQ",
    r"\._data:|:_data$|:_scale$": "optimum-quanto",
}
_ADAPTER = re.compile(
    r"(^|[._])(lora_(A|B|down|up|embedding_A|embedding_B|magnitude_vector)"
    r"|hada_w[12]_[ab]|lokr_w[12](_[ab])?|ia3_l|oft_[rR]|vera_lambda_[bd]|boft_[RsP]"
    r"|adapter_(up|down)|prompt_embeddings|dora_scale)([._]|$)"
)


def check_weights(path: Path, tensors: Mapping[str, Tensor], others: Collection[str] = ()) -> None:
    """Check that tensors are the weights of a network, not what stands for them.

    Args:
        path: where they came from, for messages.
        tensors: name -> tensor.
        others: names of what is no tensor, or of classes that were not loaded.

    Raises:
        CheckpointError: they are quantised, or those of an adapter (LoRA) without its base.
    """
    for name in [*tensors, *others]:
        for pattern, writer in _QUANTISED.items():
            if re.search(pattern, name):
                raise quantised(path, name, writer)
    adapters = [name for name in tensors if _ADAPTER.search(name)]
    if adapters and not any(_base_of(name, tensors) for name in adapters):
        raise unreadable(
            path,
            f'expected weights, got a LoRA adapter ("{adapters[0]}"), which means nothing without '
            "its base",
            "merge it into the base first (`PeftModel.from_pretrained(base, FOLDER)"
            ".merge_and_unload().save_pretrained(OUT)`), and align the merged checkpoint",
        )


def quantised(path: Path, name: str, writer: str) -> CheckpointError:
    """Build the error for a quantised checkpoint.

    Args:
        path: of the checkpoint.
        name: of a tensor that shows it.
        writer: who quantised it.
    """
    return unreadable(
        path,
        f'expected weights, got a quantised state dict ("{name}": {writer}), whose integers and '
        "scales cannot be reordered like weights",
        "align the checkpoint that it was made from, and quantise the result",
    )


def _base_of(adapter: str, names: Collection[str]) -> bool:
    """Tell whether the weight that an adapter adds to is there, as in a model that has both."""
    stem = _ADAPTER.split(adapter, maxsplit=1)[0]
    return any(f"{stem}{end}" in names for end in (".weight", ".base_layer.weight"))
