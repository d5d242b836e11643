#!/usr/bin/env bash
# transformers 5.23.0: with gradient_accumulation_steps=k a Trainer takes k times the router's auxiliary loss of a mixture of experts.
#
# Guess: since the Trainer counts a step's targets for the model (num_items_in_batch), k accumulated minibatches give the gradient of
#        their mean loss: of all tokens' loss, plus router_aux_loss_coef times the mean of the k auxiliary losses.
# Seen:  the language modeling part is that mean to rounding. The auxiliary part, which the model adds to each minibatch's share, is
#        summed: with k = 4 its gradient is 4.00 times the mean one in Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE, GPT-OSS, PhiMoE,
#        GraniteMoE and Jamba; the logged loss has it 4 times as well. An evaluation has it once. So router_aux_loss_coef means
#        another thing with each k, and halving the minibatch while k doubles changes the training. A coefficient that is
#        divided by k gives the mean. No warning. Known for several processes:
#        https://github.com/huggingface/transformers/issues/48690.
# Who meets it: whoever fine-tunes a mixture of experts with output_router_logits=True on small memory: balance of the experts then
#        outweighs the task by k.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PY' 2> >(grep -v -e Warning -e warnings.warn -e "Failed to load" >&2)
import contextlib
import io

import torch
import transformers

transformers.logging.set_verbosity_error()
K, ROWS = 4, 8
SHAPE = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "intermediate_size": 64, "initializer_range": 0.1, "pad_token_id": 0, "output_router_logits": True,
}  # fmt: skip
TWO = {"num_experts_per_tok": 2}
MODELS = {
    "Mixtral": transformers.MixtralConfig(num_local_experts=4, **SHAPE),
    "Qwen2-MoE": transformers.Qwen2MoeConfig(
        num_experts=4, moe_intermediate_size=32, shared_expert_intermediate_size=32, decoder_sparse_step=1, **TWO, **SHAPE
    ),
    "Qwen3-MoE": transformers.Qwen3MoeConfig(num_experts=4, moe_intermediate_size=32, head_dim=16, **TWO, **SHAPE),
    "OLMoE": transformers.OlmoeConfig(num_experts=4, **TWO, **SHAPE),
    "GPT-OSS": transformers.GptOssConfig(num_local_experts=4, head_dim=16, **TWO, **SHAPE),
    "PhiMoE": transformers.PhimoeConfig(num_local_experts=4, router_jitter_noise=0.0, input_jitter_noise=0.0, **SHAPE),
    "GraniteMoE": transformers.GraniteMoeConfig(num_local_experts=4, **TWO, **SHAPE),
    "Jamba": transformers.JambaConfig(
        num_experts=4, mamba_d_state=4, mamba_dt_rank=4, use_mamba_kernels=False, attn_layer_period=2, attn_layer_offset=1,
        expert_layer_period=2, expert_layer_offset=1, **SHAPE,
    ),
}  # fmt: skip
torch.manual_seed(0)
ids = torch.randint(3, 60, (ROWS, 12))
rows = [{"input_ids": row, "labels": row} for row in ids]


class InOrder(transformers.Trainer):
    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def built(config, coefficient):
    config.router_aux_loss_coef = coefficient
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config)


def vector(model, gradient=False):
    parts = [p.grad if gradient else p.detach() for p in model.parameters()]
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(parts, model.parameters())]).clone()


def trained(config, coefficient):
    """The gradient of one step of a Trainer, and the loss that it logs."""
    model = built(config, coefficient)
    start, optimizer = vector(model), torch.optim.SGD(model.parameters(), lr=1.0)
    arguments = transformers.TrainingArguments(
        output_dir="out", per_device_train_batch_size=ROWS // K, gradient_accumulation_steps=K, max_steps=1, max_grad_norm=0.0,
        logging_steps=1, use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    trainer = InOrder(model, arguments, train_dataset=rows, optimizers=(optimizer, schedule))
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    return start - vector(model), trainer.state.log_history[0]["loss"]


def means(config):
    """Gradients and values of the mean language modeling loss and the mean auxiliary loss of the same minibatches."""
    results = []
    for coefficient in (0.0, 1.0):
        model = built(config, coefficient).train()
        loss = sum(model(input_ids=part, labels=part).loss for part in ids.chunk(K)) / K
        loss.backward()
        results.append((vector(model, gradient=True), float(loss)))
    (plain, value), (both, total) = results
    return plain, both - plain, value, total - value


for name, config in MODELS.items():
    plain, auxiliary, value, extra = means(config)
    (without, logged), (whole, sum_logged) = trained(config, 0.0), trained(config, 1.0)
    ratio = float((whole - without) @ auxiliary / auxiliary.square().sum())
    rest = float((whole - without - ratio * auxiliary).norm() / (whole - without).norm())
    error = float((without - plain).norm() / plain.norm())
    print(f"{name}: language modeling part off by {error:.0e}; auxiliary part {ratio:.3f} times the mean gradient, rest {rest:.0e}; "
          f"logged loss has it {(sum_logged - logged) / extra:.3f} times")
    assert error < 1e-4, f"{name}: the language modeling part is not the mean now"
    assert abs(ratio / K - 1) < 0.01 and rest < 0.01, f"{name}: the auxiliary part has another weight now"
    fixed = trained(config, 1.0 / K)[0]
    assert (fixed - plain - auxiliary).norm() < 0.01 * (plain + auxiliary).norm(), f"{name}: dividing by k is no remedy now"
PY
