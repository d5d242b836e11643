"""Every PEFT method on tiny causal language models: it trains, is told from the base, saves, loads in plain peft."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from smoothlab.blocks import dot, fixed_loss, norm
from smoothlab.errors import BadInput
from smoothlab.llm import adalora
from smoothlab.llm.adapters import attach, virtual_tokens
from smoothlab.llm.caches import cache_of
from smoothlab.llm.evaluate import Encoded, accuracy, accuracy_one_by_one, batch, choice_loss
from smoothlab.llm.export import add_base
from smoothlab.llm.partition import live_parameters, partition
from smoothlab.llm.peft_methods import MEASURABLE, PEFT_METHODS, attachable
from smoothlab.llm.tasks import Kind
from smoothlab.shift import Shift
from smoothlab.zeroth.distributions import draw
from tests.cases import ADAPTER_CASES
from tests.llm.tiny import encoded, exact_norms, tiny_lm

OPTIONS = {name: case.options for name, case in ADAPTER_CASES.items()} | {"shira": {"r": 4}, "hra": {"r": 4}}
METHODS = attachable(measured=False)
TRAINED_ONLY = METHODS[len(MEASURABLE) :]
EPS = torch.finfo(torch.float32).eps
ITEMS: dict[Kind, Encoded] = {kind: encoded(kind) for kind in ("verbalizer", "multiple choice")}


def family(method: str) -> str:
    """Llama where the method fits nothing else, and for every second method of the rest."""
    return "llama" if method == "adaption_prompt" or METHODS.index(method) % 2 else "opt"


def attached(method: str, kind: str) -> nn.Module:
    return attach(tiny_lm(kind), method, seed=0, measured=False, **OPTIONS.get(method, {}))


def test_every_refused_method_is_refused_or_trained_only() -> None:
    assert METHODS[: len(MEASURABLE)] == MEASURABLE and all(PEFT_METHODS[name].refusal for name in TRAINED_ONLY)
    with pytest.raises(BadInput, match="--peft osf is refused"):
        attach(tiny_lm("opt"), "osf", seed=0, measured=False)
    with pytest.raises(
        BadInput, match="--peft adaption_prompt does not fit this model of type opt .Unsupported model type"
    ):
        attach(tiny_lm("opt"), "adaption_prompt", seed=0, measured=False)


QUICK = ("lora", "ia3", "prefix", "ln_tuning", "adaption_prompt")
"""In the default run; how every method's weights come back is looked at in test_saving.py as well."""


@pytest.mark.parametrize("method", [m if m in QUICK else pytest.param(m, marks=pytest.mark.check) for m in METHODS])
def test_every_method_trains_saves_and_loads(method: str, tmp_path: Path) -> None:
    """Base and module share no parameter, ten steps lower the loss, and plain peft scores as the trained model does."""
    from peft import PeftModel

    kind = family(method)
    bare = tiny_lm(kind)
    own = {id(p) for p in bare.parameters()}
    model = attach(bare, method, seed=0, measured=False, **OPTIONS.get(method, {}))
    blocks = partition(model)
    assert set(blocks) == {"base", "peft"} and {id(p) for p in blocks["base"].params} <= own
    assert not {id(p) for p in blocks["peft"].params} & own
    assert [id(p) for b in blocks.values() for p in b.params].sort() == [
        id(p) for _, p in live_parameters(model)
    ].sort()
    minibatch = batch(ITEMS["multiple choice"], range(6))
    optimizer = torch.optim.Adam(blocks["peft"].params, lr=1e-2)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = choice_loss(model, minibatch)
        loss.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in blocks["peft"].params)
        losses.append(float(loss.detach()))
        optimizer.step()
    assert losses[-1] < losses[0] - 1e-4
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    if method == "lora-ga":  # its start moved the base model's weights
        add_base(model, tmp_path)
    assert not list(tmp_path.glob("*.bin")) and (tmp_path / "adapter_model.safetensors").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = PeftModel.from_pretrained(tiny_lm(kind), tmp_path)
    for items in ITEMS.values():
        one, two = accuracy(model, items).scores, accuracy_one_by_one(again, items).scores
        torch.testing.assert_close(torch.tensor(one), torch.tensor(two), rtol=0, atol=100 * EPS)


@pytest.mark.parametrize("kind", ["opt", "llama"])
@pytest.mark.parametrize("method", ["none", "lora", "prompt", "prefix", "ptuning"])
def test_batches_score_as_single_candidates_do(method: str, kind: str) -> None:
    """In fp64 to 1e-12, whatever the batches and their padding are; the module stands off its initial values."""
    model = attach(exact_norms(tiny_lm(kind)), method, seed=0).double().eval()
    moved = partition(model).get("peft")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in moved.params if moved else ():
            p += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    for items in ITEMS.values():
        truth = torch.tensor(accuracy_one_by_one(model, items).scores, dtype=torch.float64)
        for tokens in (1, 40, 10_000):
            found = torch.tensor(accuracy(model, items, tokens=tokens).scores, dtype=torch.float64)
            torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-12)
        padded = choice_loss(model, batch(items, range(6), multiple=32))
        torch.testing.assert_close(padded, choice_loss(model, batch(items, range(6))), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", [*TRAINED_ONLY])
def test_gradients_of_trained_only_methods(method: str) -> None:
    """Right for the module, but for DoRA's, which is right where the norms of its weights are held constant."""
    kind = family(method)
    model = attach(exact_norms(tiny_lm(kind)), method, seed=0, measured=False, **OPTIONS.get(method, {})).double()
    block = partition(model)["peft"]
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in block.params:
            p += 0.05 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    bound = 1e-2 if method == "adaption_prompt" else 1e-5  # its softmax is in fp32, whatever the weights are
    minibatch = batch(ITEMS["multiple choice"], range(6))
    loss = fixed_loss(lambda: choice_loss(model, minibatch), model)
    if method == "dora":
        _hold_norms(model)
    v = draw(block, "gaussian", [1])
    v /= norm(v)
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss(), block.params)])
    shift, ends = Shift(block), []
    for h in (1e-4, -1e-4):
        with shift.along(v, h):
            ends.append(float(loss().detach()))
    assert abs(dot(gradient, v) - (ends[0] - ends[1]) / 2e-4) < bound * norm(gradient) / block.dim**0.5


def _hold_norms(model: nn.Module) -> None:
    """Let DoRA's layers use the norms that their weights have now, whatever these become."""
    from peft.tuners.lora.dora import DoraLinearLayer

    for module in model.modules():
        if isinstance(module, DoraLinearLayer):
            kept: list[torch.Tensor] = []
            plain = module.get_weight_norm

            def held(kept: list[torch.Tensor] = kept, plain: Callable = plain, **given: object) -> torch.Tensor:
                if not kept:
                    kept.append(plain(**given).detach())
                return kept[0]

            module.get_weight_norm = held  # type: ignore[method-assign]


def test_one_sided_methods_leave_base_weights_without_gradient() -> None:
    one_sided = [name for name, entry in PEFT_METHODS.items() if entry.one_sided]
    assert one_sided == ["hra", "shira"]
    for method in one_sided:
        model = attached(method, "opt")
        choice_loss(model, batch(ITEMS["verbalizer"], range(6))).backward()
        assert any(p.grad is None for p in partition(model)["base"].params)


@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_a_prefix_starts_as_a_text_of_real_tokens(kind: str) -> None:
    """Behind the prefix the logits are those behind the five tokens that it was made of."""
    model = attach(tiny_lm(kind), "prefix", seed=5)
    assert virtual_tokens(model) == 5
    text = torch.tensor([[5, 6, 7, 8]])
    found = []
    with torch.no_grad():
        behind = model(input_ids=text).logits[0]
        weight = model.prompt_encoder["default"].embedding.weight  # type: ignore[index, union-attr]
        rows = model.get_base_model().get_input_embeddings().weight  # type: ignore[operator]
        for place in range(5):  # the token whose first layer's key is the prefix's
            base = model.get_base_model()  # type: ignore[operator]
            before = torch.tensor([[*found, 0]]).repeat(len(rows), 1)
            before[:, -1] = torch.arange(len(rows))
            keys = cache_of(base(input_ids=before, use_cache=True)).layers[0].keys[:, :, -1]
            wanted = weight[place].view(4, -1, keys.shape[-1])[0]
            found.append(int((keys - wanted).flatten(1).norm(dim=1).argmin()))
        real = base(input_ids=torch.cat([torch.tensor([found]), text], 1)).logits[0, 5:]
    torch.testing.assert_close(behind, real, rtol=0, atol=100 * EPS)


def test_prompts_start_as_vocabulary_embeddings_and_lora_has_rank_8() -> None:
    model = attach(tiny_lm("opt"), "prompt", seed=0)
    words = model.get_base_model().get_input_embeddings().weight  # type: ignore[operator]
    (prompt,) = partition(model)["peft"].params
    assert prompt.shape == (10, 16) and all((words - row).abs().sum(1).min() == 0 for row in prompt)
    assert partition(attached("lora", "opt"))["peft"].dim == 2 * 2 * 8 * (16 + 16)  # layers, q and v, rank, A and B


def trained(steps: range, total: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for step in steps:
        optimizer.zero_grad()
        choice_loss(model, batch(ITEMS["multiple choice"], [step % 6, (step + 1) % 6])).backward()
        optimizer.step()
        adalora.after_step(model, step + 1, total)


def test_adalora_gives_up_ranks_by_its_schedule_and_goes_on_from_its_state(tmp_path: Path) -> None:
    from peft import PeftModel

    total = 20
    model, other = attached("adalora", "opt"), attached("adalora", "opt")
    values = {n: p for n, p in model.named_parameters() if "lora_E" in n}

    def ranked() -> int:
        return sum(int((p != 0).sum()) for p in values.values())

    def sgd(of: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(partition(of)["peft"].params, lr=0.1)

    counts = []
    for half, part in enumerate((range(4), range(4, total))):
        trained(part, total, model, sgd(model))
        counts.append(ranked())
        if not half:  # a copy of parameters and state stands where the model does
            other.load_state_dict(model.state_dict())
            adalora.restore(other, {key: t.clone() for key, t in adalora.state(model).items()})
            trained(range(4, total), total, other, sgd(other))
    assert 4 * 8 < counts[0] < 4 * 12 and counts[1] == 4 * 8  # init_r 12 and target_r 8 in 2 layers, q and v
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    again = PeftModel.from_pretrained(tiny_lm("opt"), tmp_path)
    one, two = (accuracy(m, ITEMS["verbalizer"]).scores for m in (model, again))
    torch.testing.assert_close(torch.tensor(one), torch.tensor(two), rtol=0, atol=100 * EPS)


def test_the_schedule_of_other_methods_is_empty() -> None:
    model = attached("lora", "opt")
    before = [p.clone() for p in model.parameters()]
    adalora.after_step(model, 1, 10)
    assert adalora.state(model) == {} and all(
        torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True)
    )
    adalora.restore(model, {})


@pytest.mark.parametrize("total", [1, 2, 3])
def test_the_shortest_runs_keep_adaloras_ranks(total: int) -> None:
    """Half of such a run is no step: peft's masking would look for means that nothing has been added to."""
    model = attached("adalora", "opt")
    before = {n: p.detach().clone() for n, p in model.named_parameters() if "lora_E" in n}
    for step in range(1, total + 1):
        choice_loss(model, batch(ITEMS["verbalizer"], range(4))).backward()
        adalora.after_step(model, step, total)
    assert before and all(p.equal(before[n]) for n, p in model.named_parameters() if n in before)


def test_adaloras_penalty_is_no_part_of_the_loss() -> None:
    """peft adds it to losses that the model computes itself; ours are -s and cross entropies of its logits."""
    model = attached("adalora", "opt")
    found = choice_loss(model, batch(ITEMS["multiple choice"], [0]))
    score = accuracy_one_by_one(model, ITEMS["multiple choice"]).scores[0][0]
    assert abs(float(found.detach()) + score) < 10 * EPS * abs(score)
