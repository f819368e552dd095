"""Folders of Hugging Face: recognised, aligned and written without a spec or a model option."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import hf_architectures as hf
import numpy as np
import pytest
import torch
import transformers
from networks import mlp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from gpu_align import (
    ModelError,
    UnavailableError,
    align,
    canonicalize,
    load_checkpoint,
    save_checkpoint,
)
from gpu_align._align import model_beside
from gpu_align._cli._main import app
from gpu_align._network import Data, evaluate

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")


def gpt2() -> nn.Module:
    sizes = {"vocab_size": 20, "n_positions": 12, "n_embd": 12, "n_layer": 1, "n_head": 3}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    return transformers.GPT2LMHeadModel(config)


def t5() -> nn.Module:
    sizes = {"vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 6, "num_layers": 1, "num_heads": 2}
    config = transformers.T5Config(**sizes, decoder_start_token_id=0)
    return transformers.T5ForConditionalGeneration(config)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "gpt2": gpt2,
    "bert": lambda: hf.bert("sdpa")[0],
    "vit": lambda: hf.vit("sdpa")[0],
    "t5": t5,
}


def saved(folder: Path, name: str, seed: int, **options: object) -> nn.Module:
    torch.manual_seed(seed)
    model = MODELS[name]().float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder, **options)
    (folder / "tokenizer.json").write_text(f'{{"seed": {seed}}}', encoding="utf-8")
    return model


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize(
    ("name", "shards"),
    [("gpt2", True), *(pytest.param(name, False, marks=pytest.mark.slow) for name in MODELS)],
)
def test_two_folders_are_aligned_into_a_third(name: str, shards: bool, work: Path) -> None:
    size = "4KB" if shards else "1GB"
    source = saved(work / "a", name, 0, max_shard_size=size)
    saved(work / "b", name, 1)
    done = run("align", "a", "b", "-o", "c", "--search", "descent", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["function_preserved"] is True
    assert document["distance"] < document["distance_before"]
    assert {path.name for path in Path("c").iterdir()} == {
        path.name for path in Path("a").iterdir()
    }
    assert Path("c/tokenizer.json").read_bytes() == Path("a/tokenizer.json").read_bytes()
    written = type(source).from_pretrained("c").eval()
    inputs = model_beside(["a"], {}).inputs
    assert all(len(value) == 2 and 1 not in value.shape for value in inputs.values())
    torch.testing.assert_close(logits(written, inputs), logits(source, inputs))
    before, after = source.state_dict(), written.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)


@pytest.mark.slow
def test_in_python_paths_bring_their_model(work: Path) -> None:
    saved(work / "a", "t5", 0)
    saved(work / "b", "t5", 1)
    result = align("a", "b", search="descent")
    assert result.function_difference < 1e-9
    assert "T5ForConditionalGeneration for its output logits" in result.origin
    assert result.state_dict.keys() == load_checkpoint("a").tensors.keys()
    save_checkpoint("c", result.state_dict, like=load_checkpoint("a"))
    transformers.T5ForConditionalGeneration.from_pretrained("c")
    outputs = ["logits", "encoder_last_hidden_state"]
    listed = align(["a", "b"], "b", outputs=outputs, search="descent")
    assert len(listed) == 2
    assert listed[0].log10_symmetries < result.log10_symmetries


def test_a_file_beside_a_configuration_is_recognised(work: Path) -> None:
    saved(work / "a", "gpt2", 0)
    saved(work / "b", "gpt2", 1)
    pair = ("a/model.safetensors", "b/model.safetensors")
    done = run("align", *pair, "-o", "c.safetensors", "--search", "descent")
    assert done.exit_code == 0, done.output
    assert "traced from GPT2LMHeadModel" in " ".join(done.stdout.split())
    assert Path("c.safetensors").is_file()


def test_folders_are_merged_into_a_third(work: Path) -> None:
    for seed, folder in enumerate("ab"):
        torch.manual_seed(seed)
        gpt2().save_pretrained(folder)
    tokens = np.random.default_rng(0).integers(20, size=(40, 7))
    np.savez("t.npz", x=tokens[:, :-1], y=tokens[:, 1:])
    fast = ("--search", "descent", "--device", "cpu")
    found = run("merge", "a", "b", "-o", "c", "--data", "t.npz", *fast, "--json")
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    model = transformers.GPT2LMHeadModel.from_pretrained("c")
    held = Data.of("t.npz").held
    score = evaluate(model, model.state_dict(), held, device="cpu")
    assert score.loss == pytest.approx(document["chosen"]["loss"], rel=1e-5)
    for name in ("config.json", "generation_config.json"):
        assert Path("c", name).read_bytes() == Path("a", name).read_bytes()


def test_canonicalize_takes_a_folder(work: Path) -> None:
    source = saved(work / "a", "gpt2", 0)
    done = run("canonicalize", "a", "-o", "c")
    assert done.exit_code == 0, done.output
    inputs = model_beside(["a"], {}).inputs
    written = type(source).from_pretrained("c").eval()
    torch.testing.assert_close(logits(written, inputs), logits(source, inputs))
    assert canonicalize("a").keys() == load_checkpoint("a").tensors.keys()


def test_inputs_may_be_named(work: Path) -> None:
    saved(work / "a", "gpt2", 0)
    assert run("inspect", "a", "--input-shape", "input_ids=2,5:int64:7").exit_code == 0
    wrong = run("inspect", "a", "--input-shape", "pixels=2,5:int64:7")
    assert wrong.exit_code == 2
    assert "does not take the example inputs" in wrong.output
    twice = ("--input-shape", "input_ids=2,5:int64:7") * 2
    assert "two inputs 'input_ids'" in run("inspect", "a", *twice).output


def test_named_inputs_reach_any_model(work: Path) -> None:
    Path("nets.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Linear):\n"
        "    def forward(self, x, *, scale):\n"
        "        return super().forward(x) * scale\n"
        "def make():\n"
        "    return Net(3, 2)\n",
        encoding="utf-8",
    )
    shapes = ("--input-shape", "2,3", "--input-shape", "scale=2,2")
    assert run("inspect", "--model", "nets.py:make", *shapes).exit_code == 0


def test_the_model_option_comes_first(work: Path) -> None:
    saved(work / "a", "gpt2", 0)
    Path("nets.py").write_text(
        "import torch\ndef make():\n    return torch.nn.Linear(3, 2)\n", encoding="utf-8"
    )
    done = run("inspect", "a", "--model", "nets.py:make", "--input-shape", "2,3")
    assert done.exit_code == 2
    assert "does not fit" in done.output


def test_a_chain_without_a_configuration_stays_a_chain(work: Path) -> None:
    for number in (0, 1):
        torch.manual_seed(number)
        Path(f"{number}").mkdir()
        save_checkpoint(f"{number}/model.safetensors", mlp([3, 4, 2]).state_dict())
        Path(f"{number}/config.json").write_text('{"lr": 0.1, "architectures": []}')
    assert "plain chain" in align("0", "1").origin


def test_transformers_is_asked_for_by_name(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(work / "a", "gpt2", 0)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UnavailableError, match=r"pip install 'gpu-align\[hf\]'"):
        align("a", "a")
    assert run("inspect", "a").exit_code == 2


def test_code_beside_weights_is_never_run(work: Path) -> None:
    saved(work / "a", "gpt2", 0)
    Path("a/modeling_own.py").write_text(
        "open('ran', 'w')\nclass OwnModel:\n    pass\n", encoding="utf-8"
    )
    config = json.loads(Path("a/config.json").read_text())
    own = {"architectures": ["OwnModel"], "auto_map": {"AutoModel": "modeling_own.OwnModel"}}
    Path("a/config.json").write_text(json.dumps(config | own))
    with pytest.raises(ModelError, match=r"'OwnModel', which transformers .* does not have"):
        align("a", "a")
    Path("a/config.json").write_text(json.dumps(config | {"auto_map": own["auto_map"]}))
    align("a", "a")
    assert not Path("ran").exists()


def rewritten(folder: Path, rename: Callable[[str], str], extra: dict[str, Tensor]) -> None:
    """Write the weights of a folder under other names, with more beside them."""
    tensors = load_file(folder / "model.safetensors")
    tensors = {rename(name): tensor for name, tensor in tensors.items()} | extra
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


OLD_FILES: dict[str, tuple[str, Callable[[str], str], str]] = {
    "base_model": ("gpt2", lambda n: n.removeprefix("transformer."), "h.0.attn.bias"),
    "gamma_and_beta": (
        "bert",
        lambda n: re.sub(r"LayerNorm\.(weight|bias)", lambda m: f"LayerNorm.{GREEK[m[1]]}", n),
        "cls.seq_relationship.weight",
    ),
}
GREEK = {"weight": "gamma", "bias": "beta"}


@pytest.mark.parametrize(("name", "rename", "extra"), OLD_FILES.values(), ids=OLD_FILES)
def test_files_of_the_hub_keep_their_names(
    name: str, rename: Callable[[str], str], extra: str, work: Path
) -> None:
    for number, folder in enumerate(("a", "b")):
        saved(work / folder, name, number)
        rewritten(work / folder, rename, {extra: torch.full((2, 3), float(number))})
    result = align("a", "b", search="descent")
    assert result.function_difference < 1e-9
    assert result.distance < result.distance_before
    assert f"{extra} is not part of it" in result.origin
    source = load_checkpoint("a")
    assert result.state_dict.keys() == source.tensors.keys()
    assert torch.equal(result.state_dict[extra], source.tensors[extra])
    save_checkpoint("c", result.state_dict, like=source)
    model = type(MODELS[name]())
    inputs = model_beside(["a"], {}).inputs
    written, before = (model.from_pretrained(folder).eval() for folder in ("c", "a"))
    torch.testing.assert_close(logits(written, inputs), logits(before, inputs))


def test_a_layout_that_is_joined_in_memory_says_what_to_do(work: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2}
    config = transformers.MixtralConfig(**sizes, **heads)
    transformers.MixtralForCausalLM(config).save_pretrained("a")
    with pytest.raises(ModelError, match=r"in another layout .* align the modules"):
        align("a", "a")


@pytest.mark.parametrize("name", ["torch", "AutoModel", "pipeline", "__name__", "BertConfig"])
def test_only_classes_of_models_are_built(name: str, work: Path) -> None:
    Path("config.json").write_text(json.dumps({"architectures": [name]}))
    with pytest.raises(ModelError, match="does not have"):
        model_beside([work], {})


def test_a_configuration_that_cannot_be_built_is_named(work: Path) -> None:
    text = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 7, "n_head": 2}
    Path("config.json").write_text(json.dumps(text))
    with pytest.raises(ModelError, match=r"cannot build GPT2LMHeadModel"):
        model_beside([work], {})
