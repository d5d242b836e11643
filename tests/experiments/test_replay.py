"""`smoothlab replay`: a fine-tuned base model from its seed log, and what it refuses."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from smoothlab.__main__ import main
from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.experiments.replay import find
from smoothlab.llm import hub
from smoothlab.llm.models import load_lm
from smoothlab.llm.partition import partition
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.optim.seedlog import SeedLog
from smoothlab.zeroth.distribution import Distribution
from smoothlab.zeroth.distributions import Gaussian, Rademacher, Sparse, named, of_repr
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.low_rank import LowRank


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[torch.Tensor]]:
    """The log of three steps of `micro`, and the weights after them."""
    folder = tmp_path_factory.mktemp("replay")
    model = load_lm("micro", seed=0).model
    block = partition(model)["base"]
    tokens = torch.arange(12).view(2, 6) + 5
    oracle = ZerothOrder(generator="portable")
    with_log = SeedLog(folder / "zeroth-000.log", 3, {0: block}, {0: oracle.distribution})
    groups = [{"params": block.params, "lr": 1e-5, "oracle": oracle, "name": "base", "weight_decay": 0.1}]
    optimizer = HybridSGD(groups, seed=3, log=with_log)
    for _ in range(3):
        optimizer.step(lambda: model(input_ids=tokens, labels=tokens).loss)
    return folder, [p.detach().clone() for p in block.params]


def test_a_log_and_the_base_model_make_the_trained_one(
    run: tuple[Path, list[torch.Tensor]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, weights = run
    assert main(["replay", str(folder), "--model", "micro", "--save", str(tmp_path)]) == 0
    assert "micro after 3 steps of" in capsys.readouterr().out
    rebuilt = partition(load_lm(str(tmp_path / "model"), seed=0).model)["base"]
    assert all(torch.equal(p, w) for p, w in zip(rebuilt.params, weights, strict=True))
    assert main(["replay", str(folder), "--model", str(tmp_path / "model"), "--save", str(tmp_path / "other")]) == 2
    assert "starts from other weights than these: give the model that its run began with" in capsys.readouterr().err


def test_which_file_is_meant(
    run: tuple[Path, list[torch.Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = run[0] / "zeroth-000.log"
    assert find(str(log)) == find(str(run[0])) == log
    (tmp_path / "notes.log").write_text("no seed log")
    with pytest.raises(BadInput, match=r"holds 0 seed logs \(none\): name the file of one"):
        find(str(tmp_path))
    for name in ("a.log", "b.log"):
        (tmp_path / name).write_bytes(log.read_bytes())
    with pytest.raises(BadInput, match=r"holds 2 seed logs \(a.log, b.log\)"):
        find(str(tmp_path))
    with pytest.raises(BadInput, match="there is no seed log nowhere: name a file, a folder, or a repository"):
        find("nowhere")
    monkeypatch.setattr(hub, "reachable", lambda: False)
    with pytest.raises(BadInput, match="there is no file or folder out/run here, and the hub cannot be reached"):
        find("out/run")


@pytest.mark.parametrize("distribution", [Gaussian(), Rademacher(), Sparse(0.25), LowRank(3), named("sphere")])
def test_distributions_are_read_from_heads(distribution: Distribution) -> None:
    assert of_repr(repr(distribution), "torch") == distribution
    assert of_repr(repr(distribution), "portable").generator == "portable"


def test_logs_of_before_distributions_were_renamed() -> None:
    assert of_repr("Sparse(share=0.1)", "torch") == Sparse(0.1)


def test_the_head_names_the_generator_and_the_base(tmp_path: Path) -> None:
    block = Block("x", (nn.Parameter(torch.arange(3.0)),))
    SeedLog(tmp_path / "log", 0, {0: block}, {0: Gaussian(generator="portable")}).close()
    head = json.loads((tmp_path / "log").read_bytes())
    assert head["stream"] == "portable-1" and head["groups"]["0"]["generator"] == "portable"
    raw = b"(3,) torch.float32 " + torch.arange(3.0).numpy().tobytes()
    assert head["base"] == hashlib.sha256(raw).hexdigest()
