"""Small models of Hugging Face transformers, made from configurations: nothing is downloaded."""

import torch
from architectures import Example, normal, tokens
from networks import randomised
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    RegNetConfig,
    RegNetForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.initialization import no_init_weights


def gpt2(attention: str) -> Example:
    """Return a language model whose output embedding is the input embedding."""
    config = GPT2Config(
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
    return randomised(GPT2LMHeadModel(config)), tokens(2, 5)


def bert(attention: str) -> Example:
    """Return a sentence classifier, with a mask that hides the end of one sentence."""
    config = BertConfig(
        vocab_size=7,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=10,
        max_position_embeddings=8,
        attn_implementation=attention,
    )
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    return randomised(BertForSequenceClassification(config)), (tokens(2, 5), mask)


def vit(attention: str) -> Example:
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=10,
        attn_implementation=attention,
    )
    return randomised(ViTForImageClassification(config)), normal(2, 3, 8, 8)


def llama(attention: str) -> Example:
    """Return a language model with rotary positions and two query heads to a key head."""
    config = LlamaConfig(
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
    return randomised(LlamaForCausalLM(config)), tokens(2, 5)


def resnet(layer_type: str) -> Example:
    config = ResNetConfig(
        embedding_size=5, hidden_sizes=[8, 12], depths=[2, 2], layer_type=layer_type
    )
    return randomised(ResNetForImageClassification(config)), normal(2, 3, 16, 16)


def mobilenet_v2() -> Example:
    config = MobileNetV2Config(depth_multiplier=0.35, image_size=32)
    return randomised(MobileNetV2ForImageClassification(config)), normal(2, 3, 32, 32)


def regnet(layer_type: str) -> Example:
    """Return a network with groups of four channels and, for type "y", squeeze and excitation."""
    config = RegNetConfig(
        embedding_size=5,
        hidden_sizes=[8, 12],
        depths=[2, 2],
        groups_width=4,
        layer_type=layer_type,
    )
    return randomised(RegNetForImageClassification(config)), normal(2, 3, 16, 16)


def convnext() -> Example:
    config = ConvNextConfig(hidden_sizes=[4, 6], depths=[2, 2], num_stages=2, patch_size=2)
    return randomised(ConvNextForImageClassification(config)), normal(2, 3, 16, 16)


def gpt2_small() -> Example:
    """Return GPT-2 in its smallest published size, with weights that are not set."""
    with no_init_weights():
        return GPT2LMHeadModel(GPT2Config(use_cache=False)), tokens(2, 8)
