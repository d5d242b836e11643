"""Checks that a checkpoint can be measured: a body whose weights are all there, and a tokenizer that fits it.

transformers goes on with random weights where some are missing, with an empty tokenizer where there is none, and with a
regressor's loss where the configuration names it; a measured curve would not show it.
"""

from typing import Any

import torch
from torch import nn

from smoothlab.errors import BadInput
from smoothlab.llm.partition import head_parameters

UNLIMITED = 10**9
"""Longest input of a model that states none (relative positions)."""


def prepare(config: Any, classes: int, name: str) -> list[str]:
    """Make the config that of a classifier of `classes`; returns notes for the reader."""
    from transformers.models.auto import modeling_auto as known

    if config.model_type not in known.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise BadInput(
            f"model '{name}' is of type {config.model_type}, of which transformers has no sequence classifier: use "
            "micro, or another model"
        )
    stated = getattr(config, "problem_type", None)
    # Set before the weights are read: the size of the new head follows from it.
    config.num_labels = classes
    config.problem_type = "single_label_classification"  # else a regressor's squared loss would be trained silently
    if stated in (None, config.problem_type):
        return []
    return [f"{name} was made for {stated}: it is trained with the cross-entropy of {classes} classes instead"]


def check_causal(config: Any, name: str) -> None:
    """Refuse what transformers would load as a language model although it does not read from left to right."""
    if not reads_left_to_right(config):
        raise BadInput(
            f"model '{name}' is of type {config.model_type}, which generates no text from left to right: use micro, or "
            "a causal language model as those of the OPT and Llama families are, or --head classifier"
        )


def classifies(config: Any) -> str:
    """Reason for which a checkpoint is a classifier: how it was saved, or its type; "" for a causal language model."""
    for architecture in config.architectures or ():
        if architecture.endswith("ForSequenceClassification"):
            return f"it was saved as {architecture}"
    if not reads_left_to_right(config):
        return f"models of type {config.model_type} generate no text from left to right"
    return ""


def reads_left_to_right(config: Any) -> bool:
    """Whether the model predicts the next token from those on its left."""
    from transformers.models.auto import modeling_auto as known

    kind = config.model_type
    fills_gaps = kind in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    return kind in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not fills_gaps and not config.is_encoder_decoder


def check_tokenizer(tokenizer: Any, name: str) -> list[str]:
    """Refuse a tokenizer without words, which transformers makes up where the files are missing; let it pad."""
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise BadInput(f"cannot load model '{name}': it has no tokenizer; put its tokenizer.json beside config.json")
    if tokenizer.pad_token is not None:
        return []
    if tokenizer.eos_token is None:
        raise BadInput(f"the tokenizer of '{name}' has neither a padding nor an end-of-text token: set its pad_token")
    tokenizer.pad_token = tokenizer.eos_token
    return [f"{name} has no padding token: its end-of-text token pads"]


def new_weights(model: Any, report: dict[str, Any]) -> list[str]:
    """Names of the parameters that a checkpoint lacks, or has in another shape: they are new, random ones."""
    mismatched = {mismatch[0] for mismatch in report["mismatched_keys"]}
    return [n for n, _ in model.named_parameters() if n in mismatched or n in report["missing_keys"]]


def check_weights(model: Any, report: dict[str, Any], name: str) -> list[str]:
    """Refuse weights that are not this body's: transformers would go on with random ones; only a head may be new."""
    head_ids = head_parameters(model)
    named = dict(model.named_parameters())
    mismatched = {mismatch[0] for mismatch in report["mismatched_keys"]}
    new = new_weights(model, report)
    body = [n for n in new if id(named[n]) not in head_ids and "pooler" not in n.split(".")]
    if body:
        raise BadInput(
            f"cannot load model '{name}': {len(body)} of {len(named)} weights, {body[0]} the first, are not in its "
            "safetensors or of another shape; give the weights and the config.json of one model"
        )
    notes = [f"{n} is not in the weights of {name}: new, as the head is" for n in new if id(named[n]) not in head_ids]
    if mismatched:
        notes.append(f"the head of {name} has another shape than {model.config.num_labels} classes need: a new one")
    elif head_ids and not any(id(named[n]) in head_ids for n in new):
        notes.append(f"the head is that of {name}, not a new one")
    return notes


def check_finite(model: Any, name: str) -> None:
    """Refuse weights with NaN or infinity, which would look like a learning rate that is too high."""
    for parameter_name, p in model.named_parameters():
        if not bool(torch.isfinite(p).all()):
            fix = "use other weights"
            if p.dtype in (torch.float16, torch.bfloat16):
                fix += ", or --dtype float32"
            dtype = str(p.dtype).removeprefix("torch.")
            raise BadInput(f"cannot load model '{name}': its weight {parameter_name} in {dtype} is not finite: {fix}")


def check_vocabulary(model: Any, tokenizer: Any, name: str) -> None:
    """Refuse a tokenizer with tokens that the embedding has no row for."""
    try:
        rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    except NotImplementedError:  # a few models have no table of tokens
        rows = None
    last = max(tokenizer.get_vocab().values())
    if rows is not None and last >= rows:
        raise BadInput(
            f"the tokenizer of '{name}' numbers its tokens up to {last}, its embedding has {rows} rows: give the "
            "tokenizer of these weights, or resize the embedding and save it"
        )


def longest_input(model: Any, tokenizer: Any) -> int:
    """Longest input in tokens: the number of the model's positions, else what its tokenizer states, else UNLIMITED."""
    stated = getattr(model.config, "max_position_embeddings", None)
    if isinstance(stated, int) and stated > 0:  # XLNet says -1
        for module_name, table in model.named_modules():
            if not module_name.endswith("position_embeddings") or not isinstance(table, nn.Embedding):
                continue
            if table.padding_idx is not None and table.num_embeddings == stated:
                return stated - table.padding_idx - 1  # RoBERTa and its kin number positions from padding_idx + 1
        return stated
    return int(min(tokenizer.model_max_length, UNLIMITED))
