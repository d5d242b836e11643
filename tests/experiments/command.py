"""`smoothlab finetune` as a command in a process of its own, on a language model of 70,000 parameters.

A forked process has imported all there is to import already. It may be told to die by SIGKILL where it calls a function
for the n-th time: before the call, after it, or halfway through what it writes.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Plant = Callable[[], None]
"""Makes the process die somewhere."""


def tiny_model(folder: Path) -> Path:
    """A folder with a random OPT of two layers, hidden size 16, and micro's tokenizer."""
    from transformers import OPTConfig, OPTForCausalLM

    from tests.llm.tiny import tokenizer

    config = OPTConfig(
        vocab_size=4096, hidden_size=16, word_embed_proj_dim=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=32,
        max_position_embeddings=64, activation_function="gelu", dropout=0.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        OPTForCausalLM(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def write_sentences(path: Path, count: int = 40) -> Path:
    """A data file of labelled sentences, all different."""
    rows = [{"sentence": f"film {i} is {('dull', 'fine')[i % 2]}", "label": i % 2} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def dies(owner: Any, name: str, number: int, *, after: bool = False, undo: Callable[..., None] | None = None) -> Plant:
    """The process is killed at its n-th call of owner.name, before or `after` it; `undo` takes half of it back."""

    def plant() -> None:
        whole, calls = getattr(owner, name), [0]

        def counted(*args: Any, **more: Any) -> Any:
            calls[0] += 1
            if calls[0] < number:
                return whole(*args, **more)
            if after or undo is not None:
                whole(*args, **more)
            if undo is not None:
                undo(*args)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(owner, name, counted)

    return plant


def forked(argv: list[str], said: Path, plant: Plant | None = None, **environment: str) -> int:
    """The number of a new process that runs the command; what it says on stderr goes to `said`."""
    # What the command imports, once for all processes:
    import matplotlib.axes  # noqa: F401
    import pandas  # noqa: F401
    import peft  # noqa: F401
    import scipy.stats  # noqa: F401

    import smoothlab.__main__ as entry
    import smoothlab.experiments.finetune.selection  # noqa: F401

    if child := os.fork():
        return child
    status = 1
    try:
        signal.alarm(120)  # processes that wait for each other end in a failed test
        torch.set_num_threads(1)  # the pool of threads does not survive a fork
        os.environ.update(environment)
        for number, path in ((1, said.with_name(f"{said.name}.stdout")), (2, said)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))  # pytest has its own
        if plant is not None:
            plant()
        status = entry.main(argv)
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def ended(child: int) -> int:
    """Exit status of a process, -9 if it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
