"""Folders of random weights in a known shape, and the peaks that are measured on them, at a tiny size."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from benchmarks import random_folder
from benchmarks.low_memory import KINDS, LowMemory, work
from benchmarks.random_folder import SHAPES, config_of, make, tensors_of
from smoothlab.errors import BadInput
from smoothlab.llm.memory import mapped_bytes
from smoothlab.llm.models import load_lm

SIZES = {
    "llama-2-7b": 6_738_415_616, "llama-3.2-1b": 1_235_814_400, "opt-1.3b": 1_315_758_080, "opt-125m": 125_239_296,
}  # fmt: skip
"""Parameters of the published models, by their files."""


@pytest.mark.parametrize("shape", SIZES)
def test_shapes_are_those_of_the_published_models(shape: str) -> None:
    assert sum(p.numel() for p in tensors_of(config_of(shape)).values()) == SIZES[shape]


def test_a_folder_is_a_model_of_several_files_that_maps(tmp_path: Path) -> None:
    size = make("tiny", tmp_path, file_bytes=200_000)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    model = load_lm(str(tmp_path), seed=0, dtype=torch.bfloat16).model
    assert size == sum(p.nbytes for p in model.parameters()) == mapped_bytes(model.parameters())
    deviations = [float(p.float().std()) for p in model.parameters() if p.dim() == 2]
    assert all(0.018 < deviation < 0.022 for deviation in deviations)
    assert all(bool((p == 1).all()) for p in model.parameters() if p.dim() == 1)
    with pytest.raises(BadInput, match="holds a model already"):
        make("tiny", tmp_path)
    with pytest.raises(BadInput, match="shape huge is unknown: use one of llama-2-7b"):
        make("huge", tmp_path / "other")


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 10 * 2**30))
    with pytest.raises(BadInput, match="llama-2-7b takes 12.6 GiB, 1 GiB should stay free, and .* has 10.0 GiB: make"):
        make("llama-2-7b", tmp_path)
    assert not list(tmp_path.iterdir()) and random_folder.SPARE == 2**30


@pytest.mark.parametrize(
    "kind", [kind if kind == "hybrid-lora" else pytest.param(kind, marks=pytest.mark.check) for kind in KINDS]
)
def test_each_kind_of_work_keeps_the_weights_mapped(tmp_path: Path, kind: str) -> None:
    make("tiny", tmp_path)
    row = work(kind, tmp_path, 1)
    assert row["what"] == kind and row["resident_bytes"] >= row["anonymous_bytes"] > 0
    # All of the base model, and no more: the PEFT module is not in the file.
    assert row["mapped_bytes"] == 2 * row["dim_x"] <= row["parameter_bytes"]
    moved = kind == "zo" or kind.startswith("hybrid")
    assert (row["factor_bytes"] > 0) == moved and row["steps"] == (2 if moved or kind.startswith("fo-") else 1)


@pytest.mark.check
def test_a_record_has_a_row_for_each_kind(tmp_path: Path) -> None:
    make("tiny", tmp_path / "tiny")
    experiment = LowMemory("tiny", tmp_path / "tiny", ("fo-lora", "hybrid-lora"))
    first, second = experiment.rows([])
    assert first["over_first_order"] == 1
    assert second["over_first_order"] == second["resident_bytes"] / first["resident_bytes"]
    assert 0.9 < second["over_first_order"] < 1.1  # libraries, nearly all of it
    assert [row["what"] for row in experiment.rows([first])] == ["hybrid-lora"]


def test_shapes_have_the_tokens_of_the_tokenizer() -> None:
    tokens = load_lm("micro", seed=0).tokenizer
    assert all(config_of(shape).vocab_size > max(tokens.get_vocab().values()) for shape in SHAPES)
