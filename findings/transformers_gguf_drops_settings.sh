#!/usr/bin/env bash
# transformers 5.23.0, gguf 0.19.0: a GGUF file with rotary scaling, or without attention.head_count_kv, is read as another model.
#
# Guess: from_pretrained(gguf_file=...) gives the model that is in the file, or refuses what it does not know; an unquantized
#        fp32 file gives the original's logits to the bit.
# Seen:  a plain fp32 Llama file does. With rope.scaling.type = linear and a factor of 4 in its header, logits are those of
#        the file without: config.rope_parameters says "default" (108 % off). Without attention.head_count_kv, which may be
#        left out where it equals head_count, rows of queries and keys stay in llama.cpp's order (118 % off). No warning.
# Who meets it: whoever fine-tunes or evaluates, in transformers, a model that is only published as GGUF.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 gguf==0.19.0 accelerate==1.15.0 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PY'
from pathlib import Path

import gguf
import torch
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
HEADS, LAYERS, WIDTH, VOCABULARY = 4, 2, 32, 64
settings = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "intermediate_size": 64, "initializer_range": 0.2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
}
names = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}
torch.manual_seed(0)
model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).eval()
ids = torch.arange(3, 40)[None]


def interleaved(weight):
    """Rows in llama.cpp's order: the two halves of each head's rotary pairs side by side."""
    return weight.view(HEADS, 2, -1, WIDTH).transpose(1, 2).reshape(WIDTH, WIDTH)


def write(path, head_count_kv, factor):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(64)
    writer.add_head_count(HEADS)
    if head_count_kv:
        writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    if factor is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(factor)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(VOCABULARY)])
    writer.add_token_types([gguf.TokenType.NORMAL] * VOCABULARY)
    writer.add_token_merges(["t 1"])
    weights = model.state_dict()
    tensors = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    for i in range(LAYERS):
        tensors |= {f"blk.{i}.{short}": f"model.layers.{i}.{name}" for short, name in names.items()}
    for short, name in tensors.items():
        weight = weights[f"{name}.weight"]
        weight = interleaved(weight) if short.endswith(("attn_q", "attn_k")) else weight
        writer.add_tensor(f"{short}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@torch.no_grad()
def off(name, head_count_kv=True, factor=None):
    """How far logits of the file, read by transformers, are from those of the model that it holds."""
    Path(name).mkdir()
    write(Path(name) / "model.gguf", head_count_kv, factor)
    read = transformers.AutoModelForCausalLM.from_pretrained(name, gguf_file="model.gguf").eval()
    original = model
    if factor is not None:
        rope = {"rope_type": "linear", "factor": factor, "rope_theta": 10000.0}
        original = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings, rope_parameters=rope)).eval()
        original.load_state_dict(model.state_dict())
    logits = original(input_ids=ids).logits
    return float((read(input_ids=ids).logits - logits).norm() / logits.norm()), read.config.rope_parameters["rope_type"]


seen = {
    "plain": off("plain"),
    "linear scaling": off("scaled", factor=4.0),
    "no head_count_kv": off("bare", head_count_kv=False),
}
print(transformers.__version__, {name: f"{value:.2g}, rope {kind}" for name, (value, kind) in seen.items()})
assert seen["plain"][0] < 1e-6, "a plain file is not read right, so the others say nothing"
assert seen["linear scaling"][0] > 0.1 and seen["linear scaling"][1] == "default", "rotary scaling is read now"
assert seen["no head_count_kv"][0] > 0.1, "a missing head_count_kv is understood now"
PY
