"""Small models of Hugging Face transformers, made from configurations: nothing is downloaded.

Their modules are imported by what makes them, which takes seconds.
"""

import torch
import transformers
from architectures import Example, normal, tokens
from networks import randomised


def gpt2(attention: str) -> Example:
    """Return a language model whose output embedding is the input embedding."""
    config = transformers.GPT2Config(
        vocab_size=7,
        n_positions=8,
        n_embd=12,
        n_layer=2,
        n_head=3,
        n_inner=10,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation=attention,
    )
    return randomised(transformers.GPT2LMHeadModel(config)), tokens(2, 5)


def bert(attention: str) -> Example:
    """Return a sentence classifier, with a mask that hides the end of one sentence."""
    config = transformers.BertConfig(
        vocab_size=7,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=10,
        max_position_embeddings=8,
        attn_implementation=attention,
    )
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    return randomised(transformers.BertForSequenceClassification(config)), (tokens(2, 5), mask)


def vit(attention: str) -> Example:
    config = transformers.ViTConfig(
        image_size=8,
        patch_size=4,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=10,
        attn_implementation=attention,
    )
    return randomised(transformers.ViTForImageClassification(config)), normal(2, 3, 8, 8)


def llama(attention: str) -> Example:
    """Return a language model with rotary positions and two query heads to a key head."""
    config = transformers.LlamaConfig(
        vocab_size=7,
        hidden_size=16,
        intermediate_size=10,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8,
        use_cache=False,
        attn_implementation=attention,
    )
    return randomised(transformers.LlamaForCausalLM(config)), tokens(2, 5)


def resnet(layer_type: str) -> Example:
    config = transformers.ResNetConfig(
        embedding_size=5, hidden_sizes=[8, 12], depths=[2, 2], layer_type=layer_type
    )
    return randomised(transformers.ResNetForImageClassification(config)), normal(2, 3, 16, 16)


def mobilenet_v2() -> Example:
    config = transformers.MobileNetV2Config(depth_multiplier=0.35, image_size=32)
    return randomised(transformers.MobileNetV2ForImageClassification(config)), normal(2, 3, 32, 32)


def regnet(layer_type: str) -> Example:
    """Return a network with groups of four channels and, for type "y", squeeze and excitation."""
    config = transformers.RegNetConfig(
        embedding_size=5,
        hidden_sizes=[8, 12],
        depths=[2, 2],
        groups_width=4,
        layer_type=layer_type,
    )
    return randomised(transformers.RegNetForImageClassification(config)), normal(2, 3, 16, 16)


def convnext() -> Example:
    config = transformers.ConvNextConfig(
        hidden_sizes=[4, 6], depths=[2, 2], num_stages=2, patch_size=2
    )
    return randomised(transformers.ConvNextForImageClassification(config)), normal(2, 3, 16, 16)


def gpt2_small() -> Example:
    """Return GPT-2 in its smallest published size, with weights that are not set."""
    with transformers.initialization.no_init_weights():
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(use_cache=False)), tokens(2, 8)
