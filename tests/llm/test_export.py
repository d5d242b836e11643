"""What --save writes, as plain peft and transformers load it from elsewhere after the folder was moved."""

import inspect
import json
import os
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from smoothlab.blocks import fixed_loss
from smoothlab.errors import BadInput
from smoothlab.experiments.finetune.config import Rates
from smoothlab.experiments.finetune.experiment import Finetune
from smoothlab.experiments.finetune.setup import optimizer
from smoothlab.llm.adapters import attach
from smoothlab.llm.evaluate import batch, choice_loss
from smoothlab.llm.export import claim, make_room, save
from smoothlab.llm.partition import partition
from smoothlab.llm.peft_methods import MEASURABLE, attachable
from tests.cases import ADAPTER_CASES
from tests.llm.tiny import IDS, MASK, encoded, tiny, tiny_lm, tokenizer

EPS = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Case:
    """A module, and how it is attached to a hidden size of 16."""

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    kind: str = "opt"


def started(how: Any, **more: Any) -> Case:
    return Case("lora", {"init_lora_weights": how, "r": 4, **more})


OPTIONS = {name: dict(case.options) for name, case in ADAPTER_CASES.items()} | {"shira": {"r": 4}, "hra": {"r": 4}}
CASES: dict[str, Case] = {
    **{name: Case(name, OPTIONS.get(name, {}), ("opt", "llama")[n % 2]) for n, name in enumerate(MEASURABLE)},
    **{name: Case(name, OPTIONS.get(name, {}), "llama") for name in attachable(measured=False)[len(MEASURABLE) :]},
    "pissa": started("pissa"),
    "pissa_niter": started("pissa_niter_4"),
    "olora": started("olora"),
    "lora_ga": started("lora_ga"),
    "orthogonal": started("orthogonal"),
    "gaussian": started("gaussian"),
    "eva": started("eva"),
    "dora, pissa": Case("dora", {"init_lora_weights": "pissa"}, "llama"),
    "psoft, pissa": Case("psoft", {"ab_svd_init": "pissa_init"}),
    "psoft, free": Case("psoft", {"psoft_orth": False, "psoft_svd": "lowrank"}),
    "miss, bat": Case("miss", {"init_weights": "bat", "r": 4}),
    "biases": Case("lora", {"bias": "all"}),
}
"""Every method of smoothlab, and modules whose initialization has a name, or reads or changes the base model."""
OWN = ("boft-ga", "unitary")
"""smoothlab's own methods, which peft knows after a call of `own_methods.register`."""
TRAINED = ("hybrid", "fo-peft")
FEW = ("lora", "psoft", "prompt", "pissa", "adaption_prompt")
"""In the default run."""
ALONE = (
    "prompt",
    "ptuning",
    "prefix",
    "cartridge",
    "adaption_prompt",
    "vera",
    "pvera",
    "vblora",
    "unilora",
    "tinylora",
)
"""Modules that transformers itself cannot load, and says so; what it makes of DoRA's is another model."""


def model_folder(place: Path, model: nn.Module, name: str) -> Path:
    model.save_pretrained(place / name)  # type: ignore[operator]
    tokenizer().save_pretrained(place / name)
    return place / name


def loaded(folder: Path, case: Case) -> nn.Module:
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bare = AutoModelForCausalLM.from_pretrained(folder).eval()
        return attach(bare, case.method, seed=0, measured=False, **case.options)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=IDS, attention_mask=MASK).logits
    return found.float()


def trained(folder: Path, case: Case, method: str) -> tuple[nn.Module, Tensor]:
    """A model after three steps of Algorithm 1, or of its module alone, and its logits."""
    model = loaded(folder, case)
    blocks = partition(model)
    if method == "fo-peft":
        del blocks["base"]
    mine = {id(p) for block in blocks.values() for p in block.params}
    for p in model.parameters():
        p.requires_grad_(id(p) in mine)
    before = logits(model)
    run = Finetune(method=method, eta_x=3e-3, eta_y=0.03, mu=1e-3)  # type: ignore[arg-type]
    steps = optimizer(run, blocks, Rates(run.eta_x, run.eta_y, run.mu))
    inputs = batch(encoded("multiple choice"), range(6))
    for _ in range(3):
        steps.step(fixed_loss(lambda: choice_loss(model, inputs), model))
    after = logits(model)
    assert float((after - before).abs().max()) > 1e3 * EPS
    return model, after


def reload(saved: Path, base: Path) -> dict[str, Tensor]:
    """Logits by every call that loads the adapter, or why one does not."""
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM as Auto

    adapter = saved / "adapter"
    calls: dict[str, Callable[[], Any]] = {
        "peft's usual one": lambda: AutoPeftModelForCausalLM.from_pretrained(adapter),
        "on the model of before": lambda: PeftModel.from_pretrained(Auto.from_pretrained(base), adapter),
        "transformers": lambda: Auto.from_pretrained(adapter),
    }
    if (saved / "model").exists():
        calls["on the saved model"] = lambda: PeftModel.from_pretrained(Auto.from_pretrained(saved / "model"), adapter)
    found = {}
    for name, call in calls.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found[name] = logits(call())
        except ValueError as error:
            assert "does not support" in str(error)
    return found


def check(found: dict[str, Tensor], wanted: Tensor, name: str) -> None:
    """All calls give the trained model's logits to rounding."""
    case = CASES[name]
    assert found.keys() >= {"peft's usual one", "on the model of before"}
    assert ("transformers" not in found) == (case.method in ALONE)
    for call, there in found.items():
        if call != "transformers" or case.method != "dora":
            assert float((there - wanted).abs().max()) < 16 * EPS * float(wanted.abs().max()), (name, call)


@pytest.mark.parametrize("name", [*FEW, "lora-ga", *OWN])
def test_a_hybrids_adapter_comes_back_with_its_base_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    base = model_folder(tmp_path, tiny_lm(case.kind), "before")
    model, wanted = trained(base, case, "hybrid")
    save(model, tokenizer(), tmp_path / "written", base=True)
    (tmp_path / "written").rename(tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = reload(tmp_path / "moved", base)
    check(found, wanted, name)
    assert "on the saved model" in found


FRESH = """
import sys
from pathlib import Path
from safetensors.torch import save_file
{source}
root = Path(sys.argv[1])
for folder in sorted(root.glob("saved/*/*")):
    found = reload(folder, root / (folder / "kind").read_text())
    save_file(found, folder / "found.safetensors")
"""


@pytest.mark.check
def test_every_method_comes_back_in_a_fresh_process(tmp_path: Path) -> None:
    """Trained with the base model and without, moved, and loaded from another folder by a process without smoothlab."""
    wanted = {}
    for kind in ("opt", "llama"):
        model_folder(tmp_path, tiny_lm(kind), kind)
    starts = {name for name, case in CASES.items() if "init_lora_weights" in case.options} | {"lora-ga"}
    for name, case in CASES.items():
        if name in OWN:
            continue
        for method in TRAINED if name in starts or name in FEW else TRAINED[:1]:
            model, wanted[name, method] = trained(tmp_path / case.kind, case, method)
            folder = tmp_path / "written" / method / name
            save(model, tokenizer(), folder, base=method == "hybrid")
            (folder / "kind").write_text(case.kind)
    (tmp_path / "written").rename(tmp_path / "saved")
    source = "import warnings\nimport torch\nfrom torch import Tensor\nfrom typing import Any\n"
    source += f"from collections.abc import Callable\nIDS, MASK = torch.tensor({IDS.tolist()}), "
    source += f"torch.tensor({MASK.tolist()})\n" + inspect.getsource(logits) + inspect.getsource(reload)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    (tmp_path / "elsewhere").mkdir()
    subprocess.run(
        [sys.executable, "-c", FRESH.format(source=source), str(tmp_path)], cwd=tmp_path / "elsewhere",
        env=environment, check=True, capture_output=True, timeout=1200,
    )  # fmt: skip
    for (name, method), logits_ in wanted.items():
        folder = tmp_path / "saved" / method / name
        found = load_file(folder / "found.safetensors")
        check(found, logits_, name)
        assert ("on the saved model" in found) == (method == "hybrid" or name in starts), (name, method)


@pytest.mark.parametrize("name", ["lora", "pissa", "psoft"])
def test_a_base_model_stored_in_fewer_bits_is_not_rounded_to_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps would be lost in 16 bits: the adapter names model/ where it is, and fails aloud when that is gone."""
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM

    base = model_folder(tmp_path, tiny_lm("opt").bfloat16(), "before")
    wide = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = attach(wide, CASES[name].method, seed=0, **CASES[name].options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for block in partition(model).values():
            for p in block.params:
                p += 1e-2 * torch.randn(p.shape, generator=generator)
    wanted = logits(model)
    save(model, tokenizer(), tmp_path / "written", base=True)
    monkeypatch.chdir(tmp_path)
    written, moved = tmp_path / "written", tmp_path / "moved"
    assert not any("base_layer" in name for name in load_file(written / "adapter" / "adapter_model.safetensors"))
    alike = partial(torch.testing.assert_close, rtol=0, atol=1e-6 if name == "psoft" else 0)
    alike(logits(AutoPeftModelForCausalLM.from_pretrained("written/adapter")), wanted)
    written.rename(moved)
    with pytest.raises((OSError, ValueError), match="written/model"):
        AutoPeftModelForCausalLM.from_pretrained(moved / "adapter")
    two = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("moved/model"), "moved/adapter")
    alike(logits(two), wanted)
    card = (moved / "adapter" / "README.md").read_text()
    assert f"names it as `{written / 'model'}`" in card and "When that is moved, name its new place there" in card


def test_a_models_relative_path_is_written_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import AutoPeftModelForCausalLM

    model_folder(tmp_path, tiny_lm("opt"), "before")
    monkeypatch.chdir(tmp_path)
    model, wanted = trained(Path("before"), CASES["lora"], "fo-peft")
    save(model, tokenizer(), Path("saved"), base=False)
    assert not (tmp_path / "saved" / "model").exists()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained("../saved/adapter")), wanted)


def test_a_model_without_a_name_is_saved_with_its_adapter(tmp_path: Path) -> None:
    """Weights that were drawn, as those of random:opt-125m, are nowhere else."""
    from peft import AutoPeftModelForCausalLM

    model = attach(tiny_lm("opt"), "lora", seed=0)
    wanted = logits(model)
    save(model, tokenizer(), tmp_path, base=False)
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")), wanted)


@pytest.mark.parametrize(("method", "classes"), [("lora", 2), ("lora", 3), ("psoft", 2)])
def test_classifiers_come_back_with_their_classes(method: str, classes: int, tmp_path: Path) -> None:
    """Files without a head are loaded with two classes where nobody says more: another number needs model/."""
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoModelForSequenceClassification

    base = model_folder(tmp_path, tiny("opt").float(), "before")
    bare = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=classes, ignore_mismatched_sizes=True
    )  # fmt: skip
    model = attach(bare.eval(), method, seed=0)
    with torch.no_grad():
        for block in partition(model).values():
            for p in block.params:
                p += 0.01
    wanted = logits(model)
    save(model, tokenizer(), tmp_path / "saved", base=True)
    adapter = tmp_path / "saved" / "adapter"
    found = AutoPeftModelForSequenceClassification.from_pretrained(adapter)
    torch.testing.assert_close(logits(found), wanted, rtol=0, atol=0 if method == "lora" else 1e-6)
    assert wanted.shape == (2, classes)
    named = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(base if classes == 2 else tmp_path / "saved" / "model")


@pytest.mark.check
def test_the_cards_tell_what_was_trained_and_how_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their command makes the same weights again; their code loads them; the hub's library reads their head."""
    from huggingface_hub import ModelCard

    from smoothlab.__main__ import main
    from tests.experiments.command import tiny_model, write_sentences

    monkeypatch.chdir(tmp_path)
    tiny_model(Path("model of mine"))
    write_sentences(Path("data.jsonl"))
    options = [
        "--no-path",
        "--model",
        "model of mine",
        "--search",
        "eta_y=0.01,0.05",
        "mu=0.01",
        "--verbalizers",
        "dull",
        "fine",
    ]
    sizes = "--data data.jsonl --train 24 --dev 8 --test 4 --batch 4 --eval-every 2 --steps 2 --save saved".split()
    assert main(["finetune", *options, *sizes, "--out", "run.jsonl"]) == 0
    test = [json.loads(line) for line in Path("run.jsonl").read_text().splitlines()][-2]
    for part in ("adapter", "model"):
        card = ModelCard.load(Path("saved") / part / "README.md")
        assert card.data.library_name == {"adapter": "peft", "model": "transformers"}[part]
        assert card.data.pipeline_tag == "text-generation"
        assert (
            "| trained | hybrid: the base model by zeroth-order and the lora module by first-order gradients"
            in card.text
        )
        assert f"| data | `data.jsonl` ({test['served']})" in card.text
        assert f"{100 * test['accuracy']:.1f} % of 4 items, looked at once" in card.text
        assert f"The training began with `{tmp_path / 'model of mine'}`." in card.text
        command = next(line for line in card.text.splitlines() if line.startswith("smoothlab finetune"))
        assert "--model 'model of mine'" in command and "--search eta_y=0.01,0.05 mu=0.01" in command
    first = {path: path.read_bytes() for path in Path("saved").rglob("*.safetensors")}
    Path("saved").rename("first")
    assert main([*shlex.split(command)[1:], "--out", "again.jsonl"]) == 0
    assert {path: path.read_bytes() for path in Path("saved").rglob("*.safetensors")} == first
    monkeypatch.chdir("saved")
    for part in ("adapter", "model"):
        blocks = (Path(part) / "README.md").read_text().split("```python\n")[1:]
        for code in blocks:
            scope: dict[str, Any] = {}
            exec(code.split("```")[0], scope)
            assert logits(scope["model"]).isfinite().all()
    assert len(blocks) == 1 and not capsys.readouterr().out.count("Traceback")


def test_weights_of_another_run_stay(tmp_path: Path) -> None:
    claim(tmp_path, "model=micro, seed=0")
    make_room(tmp_path, "model=micro, seed=0")
    with pytest.raises(
        BadInput, match=r"holds the weights of another run \(seed=0, this one has seed=1\): name another"
    ):
        make_room(tmp_path, "model=micro, seed=1")
    (tmp_path / "run.json").write_text("[]")
    assert make_room(tmp_path, "model=micro, seed=1") == ""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").touch()
    assert make_room(tmp_path, "model=micro, seed=1").endswith(
        "do not say of which run they are: they will be replaced"
    )


@pytest.mark.parametrize(
    ("how", "options", "words"),
    [
        ("corda", {}, "please run `preprocess_corda` first"),
        ("loftq", {"loftq_config": {"loftq_bits": 4}}, "loftq_iter"),
    ],
)
def test_starts_that_need_more_are_refused_before_training(how: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=f"^--peft lora does not fit this model .*{words}"):
        attach(tiny_lm("opt"), "lora", seed=0, init_lora_weights=how, **options)
