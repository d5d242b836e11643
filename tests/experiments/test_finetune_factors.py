"""`smoothlab finetune --masters factors`: resuming, seed logs, what is saved, and what does not fit."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from smoothlab import records
from smoothlab.errors import BadInput
from smoothlab.experiments.finetune import footprint
from smoothlab.experiments.finetune.experiment import Finetune
from smoothlab.experiments.finetune.footprint import copies, factor_bytes
from smoothlab.experiments.finetune.options import check, unused
from smoothlab.llm import memory
from smoothlab.llm.models import load_lm
from smoothlab.zeroth.factors import with_steps

RUN = Finetune(
    dtype="bfloat16", masters="factors", distribution="lowrank(1)", train=16, dev=8, test=8, batch=4, parts=1, steps=6,
    eval_every=2, eta_x=1e-3, patience=0,
)  # fmt: skip


def rows(run: Finetune, out: Path, stop: int | None = None) -> list[dict[str, Any]]:
    """Rows of a run, stopped after some of them if asked, without what a clock says."""
    if stop is None:
        records.run(run, out, environment={})
    else:
        course = run.rows([])
        writer = records.Writer(out, "finetune", records._plain(run.__dict__), {})
        for _ in range(stop):
            writer.write(next(course))
        next(course)  # the checkpoint of the last row is there as well
        course.close()
        writer._stack.close()
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    clock = ("seconds", "steps_per_second", "crc32")
    return [{k: v for k, v in row.items() if k not in clock} for row in lines if row["kind"] == "row"]


@pytest.mark.parametrize(
    "more",
    [
        {},
        pytest.param({"search": ("eta_x=1e-3,2e-3",), "variant": "subspace(2)", "steps": 4}, marks=pytest.mark.check),
        pytest.param({"method": "zo", "variant": "momentum(0.5)"}, marks=pytest.mark.check),
        pytest.param({"generator": "portable", "log": True}, marks=pytest.mark.check),
    ],
)
def test_a_stopped_run_ends_as_an_undisturbed_one(tmp_path: Path, more: dict[str, Any]) -> None:
    more, prefix = dict(more), "log:" if "log" in more else ""
    more.pop("log", None)
    run = replace(RUN, **more)
    wanted = rows(run, tmp_path / "whole.jsonl")
    kept = replace(run, checkpoint=Path(f"{prefix}{tmp_path / 'kept'}"))
    rows(kept, tmp_path / "stopped.jsonl", stop=2)
    assert rows(kept, tmp_path / "stopped.jsonl") == wanted
    # Checkpoints hold seeds and numbers of the base model's steps, not its weights.
    assert all(path.stat().st_size < 1_500_000 for path in (tmp_path / "kept").iterdir())


def test_what_is_saved_is_the_sum_rounded_once(tmp_path: Path) -> None:
    run = replace(RUN, method="zo", save=tmp_path / "saved", steps=2)
    setup = run.setup()
    trainer = setup.trainer()
    for _ in range(2):
        trainer.update()
    ends = {name: with_steps(p).bfloat16() for name, p in setup.model.named_parameters()}
    setup.save(tmp_path / "saved", "")
    loaded = load_lm(str(tmp_path / "saved" / "model"), seed=0, dtype=torch.bfloat16).model
    for name, p in loaded.named_parameters():
        assert torch.equal(p, ends[name]), name
    plain = load_lm("micro", seed=0, dtype=torch.bfloat16).model
    assert any(not torch.equal(p, q) for p, q in zip(loaded.parameters(), plain.parameters(), strict=True))


def test_copies_and_factors_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert copies(RUN) == 1 and copies(replace(RUN, measure=("peft",))) == 1
    assert copies(replace(RUN, masters="float32")) == 4  # weights, a moved copy, masters of twice the width
    assert copies(replace(RUN, masters="float32", perturb="forward")) == 3
    assert copies(replace(RUN, method="fo-peft")) == 1 and copies(replace(RUN, method="fo-full")) == 2
    assert copies(replace(RUN, measure=("all",))) == copies(Finetune(follow=5)) == memory.VECTORS
    setup = RUN.setup()
    matrices = [p for p in setup.blocks["base"].params if p.dim() == 2]
    a_step = 4 * sum(sum(p.shape) for p in matrices)
    assert factor_bytes(RUN, setup.blocks, 6) == 6 * a_step
    assert factor_bytes(replace(RUN, q=2, distribution="lowrank(3)"), setup.blocks, 6) == 36 * a_step
    assert factor_bytes(replace(RUN, variant="subspace(4)"), setup.blocks, 6) == 2 * a_step
    assert factor_bytes(replace(RUN, masters="float32"), setup.blocks, 6) == 0
    monkeypatch.setattr(footprint.memory, "free", lambda device: int(10.5 * a_step))
    with pytest.raises(BadInput, match="--steps 11: their factors take .* use at most 10 steps, or --variant"):
        footprint.factor_notes(replace(RUN, steps=11), setup.blocks)
    assert "factors of 10 steps take" in footprint.factor_notes(replace(RUN, steps=10), setup.blocks)[0]


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(BadInput, match="--masters factors with --dtype float32: .* add --dtype bfloat16"):
        check(replace(RUN, dtype="float32"))
    with pytest.raises(BadInput, match="--masters factors with --distribution gaussian: use --distribution lowrank"):
        check(replace(RUN, distribution="gaussian"))
    with pytest.raises(BadInput, match="--masters factors with --variant muon"):
        check(replace(RUN, variant="muon"))
    assert any(
        "--masters factors is not used by --method fo-peft" in note for note in unused(replace(RUN, method="fo-peft"))
    )
