#!/usr/bin/env bash
# torchao 0.18.0, peft 0.21.2: LoRA over int8 weights with dynamic int8 activations gets wrong gradients, without an error.
#
# Guess: a frozen layer, quantized or not, hands gradients through to the adapters before it, as bitsandbytes' layers and
#        torchao's own Int8WeightOnlyConfig do; a layer that can't raises an error, as torchao's float8 kernel does.
# Seen:  the output of a layer under Int8DynamicActivationInt8WeightConfig requires no gradient, whatever its input: what
#        comes before it reaches the loss by residual connections and other adapters alone. With LoRA on all linear layers
#        each adapter has a gradient; together their norm is 32 % of that over the unquantized model, at a cosine of 0.4
#        to it. With LoRA on q, v and down_proj 8 of 12 gradients are None, and training goes on. peft's warning on this
#        layer says that "forward and training will work". Int8WeightOnlyConfig's gradients are right to 5 %. The loss
#        is the same to 0.2 % in all: zeroth-order differences that are long beside the steps of rounding see its slope.
# Who meets it: whoever fine-tunes by LoRA over a model that was quantized for fast inference, or compares zeroth-order with
#        first-order gradients there.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 peft==0.21.2 torchao==0.18.0 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PY' 2> >(grep -v -e "Failed to load" -e Could -e Warning -e pytree >&2)
import peft
import torch
import transformers
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

transformers.logging.set_verbosity_error()
config = transformers.LlamaConfig(
    vocab_size=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, initializer_range=0.1,
)
ids = torch.arange(3, 20)[None].repeat(2, 1)
DYNAMIC = Int8DynamicActivationInt8WeightConfig()


def adapted(quantization, targets):
    torch.manual_seed(0)
    base = transformers.LlamaForCausalLM(config).eval()
    if quantization is not None:
        quantize_(base, quantization, lambda module, name: isinstance(module, torch.nn.Linear) and name != "lm_head")
    lora = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(1)
    return peft.get_peft_model(base, lora).eval()


def gradients(quantization, targets):
    """The loss, and the gradient of each of the adapters' parameters, None where there is none."""
    model = adapted(quantization, targets)
    params = [p for p in model.parameters() if p.requires_grad]
    loss = model(input_ids=ids, labels=ids).loss
    found = torch.autograd.grad(loss, params, allow_unused=True)
    return loss.item(), found


for quantization, passes in ((Int8WeightOnlyConfig(), True), (DYNAMIC, False)):
    layer = torch.nn.Sequential(torch.nn.Linear(64, 64)).requires_grad_(False)
    quantize_(layer, quantization)
    assert layer(torch.randn(3, 64, requires_grad=True)).requires_grad == passes, f"{quantization} changed"


def flat(found, exact):
    return torch.cat([torch.zeros(e.numel()) if g is None else g.flatten() for g, e in zip(found, exact)])


for targets in ("all-linear", ["q_proj", "v_proj", "down_proj"]):
    loss, exact = gradients(None, targets)
    for quantization, right in ((Int8WeightOnlyConfig(), True), (DYNAMIC, False)):
        value, found = gradients(quantization, targets)
        missing = sum(g is None for g in found)
        got, wanted = flat(found, exact), flat(exact, exact)
        size, cosine = float(got.norm() / wanted.norm()), float(got @ wanted / got.norm() / wanted.norm())
        off = float((got - wanted).norm() / wanted.norm())
        print(f"{targets}, {type(quantization).__name__}: loss {value:.4f} ({loss:.4f} unquantized), {missing} of "
              f"{len(found)} gradients missing, off by {off:.2g}, norm {size:.2f}, cosine {cosine:.2f}")
        assert abs(value - loss) < 0.01 * loss
        if right:
            assert missing == 0 and off < 0.1, "weights alone are wrong, too"
        else:
            assert size < 0.6 and cosine < 0.8, "gradients come through now"
            assert (missing > 0) == (targets != "all-linear")
PY
