"""The gallery of architectures: the groups of each that the tests know, drawn and counted.

    python -m docs.generate.gallery

Traces every architecture of `tests/test_architectures.py` and writes `docs/gallery/*.svg` and
`docs/gallery/gallery.json`, from which the page is made.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.style

from gpu_align import PermutationSpec, discover
from gpu_align._report._figures import STYLE
from gpu_align._report._lane_chart import lane_chart
from gpu_align._report._lanes import layout
from gpu_align._symmetry import outline

ROOT = Path(__file__).parents[2]
GALLERY = ROOT / "docs" / "gallery"

KINDS: Mapping[str, Mapping[str, str]] = {
    "Convolutional networks": {
        "vgg16": "VGG16",
        "resnet_basic": "ResNet, basic blocks (Hugging Face)",
        "resnet_bottleneck": "ResNet, bottlenecks (Hugging Face)",
        "resnet50": "ResNet50",
        "se_resnet": "ResNet with squeeze-and-excitation",
        "group_norm_resnet": "ResNet with GroupNorm, before activation",
        "resnext": "ResNeXt, grouped convolutions",
        "regnet_x": "RegNet X (Hugging Face)",
        "regnet_y": "RegNet Y (Hugging Face)",
        "mobilenet_v2": "MobileNetV2 (Hugging Face)",
        "depthwise_separable": "Depthwise separable convolutions",
        "grouped_chain": "A chain of grouped convolutions",
        "dense_net": "DenseNet",
        "inception": "Inception",
        "u_net": "U-Net",
        "autoencoder": "Autoencoder",
        "convnext": "ConvNeXt (Hugging Face)",
    },
    "Transformers": {
        "gpt2": "GPT-2 (Hugging Face)",
        "gpt2_eager": "GPT-2, attention written out",
        "gpt2_small": "GPT-2 small, full size",
        "bert": "BERT (Hugging Face)",
        "bert_eager": "BERT, attention written out",
        "vit": "ViT (Hugging Face)",
        "vit_eager": "ViT, attention written out",
        "packed_vit": "ViT with packed projections",
        "packed_vit_fused": "ViT with packed projections, fused attention",
        "llama": "Llama: rotary embeddings, grouped queries (Hugging Face)",
        "llama_eager": "Llama, attention written out",
        "self_attention": "nn.MultiheadAttention",
        "cross_attention": "Cross attention, a memory of its own width",
        "cross_attention_packed": "Cross attention, packed",
        "transformer_encoder": "nn.TransformerEncoder",
        "transformer_encoder_pre": "nn.TransformerEncoder, norm first",
        "encoder_decoder": "nn.Transformer, encoder and decoder",
    },
    "Recurrent networks": {
        "rnn": "nn.RNN",
        "lstm": "nn.LSTM, two layers",
        "projected_lstm": "nn.LSTM, projected, both directions",
        "lstm_cell": "nn.LSTMCell",
        "gru": "nn.GRU, two layers",
        "bidirectional_gru": "nn.GRU, both directions",
        "captioner": "Captions of images: a code and an LSTM",
    },
    "Perceptrons": {
        "wide_mlp": "MLP 784-512-512-512-10",
        "siren": "SIREN",
        "mlp_mixer": "MLP-Mixer",
    },
}
"""Kind -> name in the tests -> title."""


def tested() -> Mapping[str, tuple[Callable[[], Any], float]]:
    """Return what the tests have: name -> what makes model and inputs, log10 of the symmetries."""
    sys.path.insert(0, str(ROOT / "tests"))  # where they import each other from
    try:
        import test_architectures
    finally:
        sys.path.remove(str(ROOT / "tests"))
    return test_architectures.SMALL | test_architectures.FULL


def draw(spec: PermutationSpec, path: Path) -> None:
    """Write the picture of the groups of a spec."""
    style = ["default", STYLE, {"svg.fonttype": "none", "font.family": "sans-serif"}]
    with matplotlib.style.context(style):
        lane_chart(layout(outline(spec))).savefig(path, format="svg", metadata={"Date": None})
    lines = (line.rstrip() for line in path.read_text(encoding="utf-8").splitlines())
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Trace, draw and count."""
    GALLERY.mkdir(exist_ok=True)
    made = tested()
    found = {}
    for name in (name for titles in KINDS.values() for name in titles):
        spec = discover(*made[name][0](), verify=False)
        draw(spec, GALLERY / f"{name}.svg")
        movable = outline(spec).movable
        found[name] = {
            "groups": len(movable),
            "inside": sum(span.parent is not None for span in movable),
            "units": sum(outline(spec).units(span) for span in movable),
            "log10": spec.log10_symmetries,
        }
        print(name, found[name])
    text = json.dumps(found, indent=1)
    (GALLERY / "gallery.json").write_text(f"{text}\n", encoding="utf-8")


def page() -> str:
    """Return the gallery in Markdown."""
    found = json.loads((GALLERY / "gallery.json").read_text(encoding="utf-8"))
    parts = []
    for kind, titles in KINDS.items():
        parts.append(f"### {kind}")
        parts += [_entry(name, title, found[name]) for name, title in titles.items()]
    return "\n\n".join(parts)


def _entry(name: str, title: str, counts: Mapping[str, Any]) -> str:
    inside = f", {counts['inside']} of them inside others" if counts["inside"] else ""
    counted = (
        f"{counts['groups']} groups{inside}; {counts['units']:,} units; "
        f"10<sup>{counts['log10']:.1f}</sup> orders"
    )
    picture = f"![Groups of {title} over its layers](gallery/{name}.svg)"
    body = "\n\n".join([counted + ".", picture])
    indented = "\n".join(f"    {line}".rstrip() for line in body.splitlines())
    heading = f"{title}: {counts['groups']} groups, 10<sup>{counts['log10']:.0f}</sup> orders"
    return f'??? note "{heading}"\n\n{indented}'


if __name__ == "__main__":
    main()
