"""SmoothnessCallback in a real transformers.Trainer on a tiny OPT with LoRA."""

from pathlib import Path

import pytest
import torch

from smoothlab import records
from smoothlab.errors import BadInput

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")


def train(folder: Path, callback: object | None, joint: bool = False) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Six steps of AdamW with dropout and accumulation; the state dict, and what the RNG gives afterwards."""
    from peft import LoraConfig, get_peft_model
    from transformers import OPTConfig, OPTForSequenceClassification, Trainer, TrainingArguments

    transformers.set_seed(0)
    config = OPTConfig(
        vocab_size=60, hidden_size=16, word_embed_proj_dim=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=32,
        max_position_embeddings=40, num_labels=2, activation_function="gelu", dropout=0.1,
    )  # fmt: skip
    model = get_peft_model(OPTForSequenceClassification(config), LoraConfig(task_type="SEQ_CLS", r=2))
    if joint:
        model.requires_grad_(True)
    rows = [
        {"input_ids": torch.randint(4, 60, (9,)), "attention_mask": torch.ones(9, dtype=torch.long), "labels": i % 2}
        for i in range(24)
    ]
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=6,
        report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[callback] if callback else [])  # type: ignore[arg-type]
    trainer.train()
    flags = torch.tensor([p.requires_grad for p in model.parameters()])
    return [*(t.clone() for t in model.state_dict().values()), flags], torch.rand(4)


@pytest.mark.parametrize("joint", [False, True])
def test_training_with_the_callback_is_training_without_it(tmp_path: Path, joint: bool) -> None:
    from smoothlab.llm.callback import SmoothnessCallback

    plain, noise = train(tmp_path, None, joint)
    callback = SmoothnessCallback(at=[0, 4], out=tmp_path / "run.jsonl", cross=[("base", "peft")], precision=0.2)
    watched, noise_after = train(tmp_path, callback, joint)
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    assert torch.equal(noise, noise_after)
    table = records.load(tmp_path / "run.jsonl")
    assert sorted(set(table["step"])) == [0, 4]
    assert set(table["block"]) == {"base", "peft", "head"}
    assert len(table) == len(callback.rows) == 2 * (3 * 3 + 1)
    assert (table[table["quantity"] == "frobenius"]["value"] >= 0).all()


def test_a_fixed_minibatch_and_chosen_blocks(tmp_path: Path) -> None:
    from smoothlab.llm.callback import SmoothnessCallback

    fixed = {
        "input_ids": torch.full((2, 5), 7),
        "attention_mask": torch.ones(2, 5, dtype=torch.long),
        "labels": torch.tensor([0, 1]),
    }
    callback = SmoothnessCallback(at=[1], blocks=["peft"], minibatch=fixed)
    train(tmp_path, callback)
    assert {row["block"] for row in callback.rows} == {"peft"} and {row["step"] for row in callback.rows} == {1}


def test_an_unknown_block_is_refused(tmp_path: Path) -> None:
    from smoothlab.llm.callback import SmoothnessCallback

    with pytest.raises(BadInput, match="block 'bass' is unknown: use some of base, peft, head"):
        train(tmp_path, SmoothnessCallback(at=[0], blocks=["bass"]))
