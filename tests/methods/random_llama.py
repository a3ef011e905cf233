"""A random Llama of 3 layers, 4 heads and 2 key-value heads: `model, net = tiny_llama()`."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from insitu import LanguageModel


def tiny_llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    net = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in net.parameters():  # spread them, so that a change inside shows at the end
            weight.mul_(8 if weight.dim() > 1 else 1)
    return LanguageModel(net), net
