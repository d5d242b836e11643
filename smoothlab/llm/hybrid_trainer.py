"""HybridTrainer: a `transformers.Trainer` that trains by Algorithm 1.

One training step moves the base model x by a zeroth-order gradient and all else that is trained, y, by exact ones,

    x <- x - eta_x ghat_x f(x, y),   y <- y - eta_y grad_y f(x, y),   both at the same (x, y),

where f is the loss by which the Trainer itself would train: what its `training_step` hands to `backward`. Of k
accumulated minibatches f is the mean, so that a zeroth-order step has one direction z, and its coefficient is the mean
of the k slopes along z. Everything else is the Trainer's: data, logging, evaluation, checkpoints, schedules, clipping.
"""

import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from smoothlab.blocks import Block, Loss, differentiable, fixed_loss, python_rng
from smoothlab.errors import BadInput
from smoothlab.llm import distributed, heads, mixing
from smoothlab.llm.caches import CACHED, accept_past_key_values
from smoothlab.llm.export import ROTATED, add_base
from smoothlab.llm.trainer_loss import LossWatch, Snapshot, copied
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.zeroth.estimators import Estimator, ZerothOrder

MASK = 0x9E3779B1
"""Difference of the seeds of two minibatches of a step; it fits 32 bits, as torch's CPU generator reads no more."""


class HybridMixin:
    """What makes a Trainer a hybrid one: `class Mine(HybridMixin, SomeTrainer)`; see `HybridTrainer`."""

    args: Any
    model: Any
    accelerator: Any
    optimizer: Any
    state: Any
    compute_loss: Any
    compute_loss_func: Any
    label_smoother: Any
    _prepare_inputs: Any
    compute_loss_context_manager: Any

    def __init__(self, *args: Any, eta_x: float = 1e-6, oracle: Estimator | None = None, **kwargs: Any) -> None:
        self.eta_x, self.oracle = eta_x, oracle
        if oracle is None:
            self.oracle = ZerothOrder()
        self._minibatches: _Minibatches | None = None  # of this step, so far
        self._uses_count = False  # of targets; known after the first minibatch
        self._rate: float | None = None  # of the step's zeroth-order part
        super().__init__(*args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """HybridSGD: estimates for the base model, and for all else that is trained the Trainer's own optimizer.

        Raises:
            BadInput: the Trainer cuts parameters into shards, spreads a minibatch over GPUs or scales its loss; or the
                PEFT method is PSOFT, or a prefix under gradient checkpointing.
        """
        if self.optimizer is None:
            self._check()
            has_module = hasattr(self.model, "peft_config")
            base = heads.blocks(self.model, base=True, module=has_module)["base"]
            # Beside a module x is what peft has frozen; without one, what the user has not.
            params = tuple(p for p in base.params if p.requires_grad != has_module)
            with differentiable([Block("base", params)], required=False):
                exact = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
            # Exact groups come first: the rate that a Trainer logs is that of the first group.
            groups = [group | {"name": f"exact {k}"} for k, group in enumerate(exact.param_groups) if group["params"]]
            groups.append({"params": params, "lr": self.eta_x, "oracle": self.oracle, "name": "base"})

            def shared(param_groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
                exact.param_groups = param_groups
                return exact

            # transformers' schedules with a floor (min_lr, lr_end) take it as a share of this default, for all groups.
            default = exact.defaults["lr"] if len(groups) > 1 else self.eta_x
            self.optimizer = HybridSGD(groups, lr=default, seed=self.args.seed, exact=shared)
            mixing.follow(self.model, self.optimizer)
        return self.optimizer

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """Return the Trainer's sampler; rows that are grouped by length get an order that a resumed run repeats."""
        sampler = super()._get_train_sampler(*args, **kwargs)  # type: ignore[misc]
        if isinstance(sampler, LengthGroupedSampler):
            # transformers 5.23 leaves it to torch's global generator, whose state at the start of an epoch a run that
            # is resumed within that epoch does not know: it would skip the first minibatches of another order.
            generator = torch.Generator()
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            sampler.generator = generator
            sampler.set_epoch = lambda epoch: generator.manual_seed(seed + epoch)
        return sampler

    def training_step(self, model: Any, inputs: Mapping[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Compute both gradients of the step's mean loss once its last minibatch is here; `optimizer.step()` follows.

        Returns:
            The step's loss with its last minibatch, 0 with those before.

        Raises:
            BadInput: see `HybridSGD.backward`; or the Trainer was given another optimizer.
        """
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it
        if not isinstance(optimizer, HybridSGD):
            kind = type(optimizer).__name__
            raise BadInput(f"HybridTrainer got {kind} as its optimizer: leave optimizers out, or give a HybridSGD")
        if optimizer.factors:  # which the Trainer's own checkpoints would not hold
            raise BadInput("HybridTrainer got masters 'factors': use fp32 masters, or smoothlab.Trainer")
        if self._minibatches is None:
            self._check_mean(model, inputs, num_items_in_batch)
            self._minibatches = _Minibatches(self)
        self._minibatches.add(model, inputs, num_items_in_batch)
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        minibatches, self._minibatches = self._minibatches, None
        if self.args.world_size > 1:
            optimizer.peers = distributed.Peers()
        zeroth = [group["lr"] for group in optimizer.param_groups if group["oracle"] is not None]
        if zeroth:
            self._rate = float(zeroth[0])  # the schedule has moved on when it is logged
        return optimizer.backward(minibatches.losses()).to(self.args.device, torch.float32)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the base model's learning rate beside the other one."""
        if "learning_rate" in logs and self._rate is not None:
            logs["eta_x"] = self._rate
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save the model; with an adapter, the base model's weights beside it, which plain peft does not save."""
        super()._save(output_dir, state_dict)  # type: ignore[misc]
        if self.args.should_save and hasattr(self.model, "peft_config"):
            add_base(self.model, Path(output_dir or self.args.output_dir))

    def _check_mean(self, model: Any, inputs: Mapping[str, Any], items: Any) -> None:
        """Let the Trainer divide by the number of minibatches where the model should do so and does not.

        A Trainer leaves that to models whose `forward` takes any keyword. Many classifiers and masked models of
        transformers 5 take num_items_in_batch that way, and return the minibatch's own mean: the Trainer's loss is then
        k times that of the step. See https://github.com/huggingface/transformers/issues/47688. Where a model divides
        and then adds to its share, as auxiliary losses of routers are added, all k summands count: a warning says so.
        """
        custom = type(self).compute_loss is not Trainer.compute_loss or self.compute_loss_func is not None
        parts = self.args.gradient_accumulation_steps * self.args.world_size
        if parts == 1 or items is None or custom or self.label_smoother is not None or self._uses_count:
            return
        inputs = self._prepare_inputs(inputs)

        def loss(count: Any) -> Tensor:
            with self.compute_loss_context_manager():
                outputs = model(**copied(inputs), num_items_in_batch=count)
            value: Tensor = outputs["loss"] if isinstance(outputs, dict) else outputs[0]
            return value

        with torch.no_grad():  # one dropout mask for both
            of_count, of_double = (float(fixed_loss(partial(loss, n * items), self.model)()) for n in (1, 2))
        self._uses_count = abs(of_double - of_count) > abs(of_count) / 4  # else it is half as large
        inner = self.accelerator.unwrap_model(model)
        if hasattr(inner, "get_base_model"):  # of peft
            inner = inner.get_base_model()
        name = type(inner).__name__
        added = 2 * of_double - of_count  # of a loss share / count + added
        if self._uses_count and abs(added) > 1e-4 * abs(of_count):  # counts are divided by in fp32
            warnings.warn(
                f"{name} adds {added:.3g}, as auxiliary losses of routers do, to each minibatch's share of the mean "
                f"loss, so that it counts {parts} times: divide its coefficient (router_aux_loss_coef) by {parts}",
                stacklevel=2,
            )
        if not self._uses_count:
            self.model_accepts_loss_kwargs = False
            warnings.warn(
                f"{name} takes num_items_in_batch and does not use it: a Trainer would train on {parts} times the mean "
                "loss; HybridTrainer takes the mean",
                stacklevel=2,
            )

    def _check(self) -> None:
        if getattr(self, "is_fsdp_enabled", False) or getattr(self, "is_deepspeed_enabled", False):
            raise BadInput(
                "FSDP and DeepSpeed cut parameters into shards, which HybridTrainer cannot move: use DDP, or HybridSGD "
                "with fully_shard in a loop of your own"
            )
        if self.args.n_gpu > 1:
            raise BadInput(
                f"{self.args.n_gpu} GPUs in one process: start one process a GPU, with torchrun, or hide others"
            )
        if self.args.fp16:
            raise BadInput("fp16=True scales the loss, which zeroth-order differences do not survive: use bf16=True")
        for config in getattr(self.model, "peft_config", {}).values():
            if config.peft_type in ROTATED:
                raise BadInput(f"{config.peft_type.value} cannot be loaded onto a trained base model: use LoRA")
            # In train mode a checkpointed layer of transformers 5.23 and 5.24 (modeling_layers.py) drops its cache.
            # Earlier Trainers make an optimizer before they switch checkpointing on.
            checkpointed = any(getattr(m, "gradient_checkpointing", False) for m in self.model.modules())
            requested = (getattr(self.args, f"{kind}_checkpointing", False) for kind in ("activation", "gradient"))
            if config.peft_type in CACHED and (checkpointed or any(requested)):
                raise BadInput(
                    f"gradient checkpointing drops the virtual tokens of {config.peft_type.value} in train mode: train "
                    "without it, or use prompt tuning or LoRA"
                )
            accept_past_key_values(self.model)


class HybridTrainer(HybridMixin, Trainer):  # type: ignore[misc]
    """A `transformers.Trainer` whose training step is Algorithm 1; all arguments but two are the Trainer's own.

    >>> from peft import LoraConfig, get_peft_model
    >>> from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments
    >>> from smoothlab import HybridTrainer
    >>> shape = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    >>> model = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2))
    >>> model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
    >>> args = TrainingArguments("out", learning_rate=1e-3, use_cpu=True)
    >>> trainer = HybridTrainer(model, args, eta_x=1e-6)
    >>> [(group["name"], group["lr"]) for group in trainer.create_optimizer().param_groups]
    [('exact 0', 0.001), ('base', 1e-06)]

    x is what peft has frozen. Exact gradients are of all that requires one: the PEFT module, a classifier's head,
    norms that were unfrozen; `args.learning_rate`, `optim` and `weight_decay` are of these. Without a PEFT module all
    that is trained takes zeroth-order steps. The schedule scales both rates. `max_grad_norm` clips the exact gradient
    alone, and `grad_norm` logs the norm of it: the zeroth-order part is neither counted nor clipped. Dropout masks
    are fixed within a step. A loss that is not finite ends training. `save_model` and checkpoints hold the base
    model's weights in the adapter's file.

    Args:
        eta_x: learning rate of the base model.
        oracle: estimator of the base model's gradient; two-sided Gaussian, mu = 1e-3, by default.
        *args: of `transformers.Trainer`. An optimizer that it is given must be a HybridSGD, and is then used as it is.
        **kwargs: likewise.
    """


class _Minibatches:
    """The minibatches of a step, and the loss of each as the Trainer hands it to `backward`.

    The Trainer itself computes each once, as its subclasses keep metrics and count calls. For the other evaluations of
    the step a stand-in does, from the attributes that the Trainer had before the step.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer, self._snapshot = trainer, Snapshot(trainer)
        self._arguments: list[tuple[Any, Any, Any]] = []
        self._has_exact = any(group["oracle"] is None for group in trainer.optimizer.param_groups)
        self._turn = trainer  # who computes the losses at present
        self._waits = True  # the Trainer's own turn is to come

    def add(self, model: Any, inputs: Mapping[str, Any], items: Any) -> None:
        """Add the next minibatch, given the arguments of `training_step`."""
        # Without DistributedDataParallel: HybridSGD adds up over processes.
        self._arguments.append((self._trainer.accelerator.unwrap_model(model), inputs, items))

    def losses(self) -> list[Loss]:
        """Losses whose mean is that of the step, to be evaluated in order."""
        args, count = self._trainer.args, len(self._arguments)
        seed = (args.seed << 20) + self._trainer.state.global_step
        losses = []
        for number in range(count):
            # A dropout mask belongs to a minibatch of a step, and is the same in all evaluations of it.
            mask_seed = seed + (args.process_index * count + number) * MASK
            losses.append(
                fixed_loss(partial(self._loss, number, mask_seed), self._trainer.model, train=True, seed=mask_seed)
            )
        return losses

    def _loss(self, number: int, seed: int) -> Tensor:
        if number == 0:
            self._turn = self._next()
        trainer, (model, inputs, items) = self._turn, self._arguments[number]
        accelerator = trainer.accelerator
        trainer.accelerator = keeper = _LossKeeper(accelerator)
        if isinstance(trainer.compute_loss, LossWatch):
            trainer.compute_loss.forget()  # which only wants the last minibatch of a step
        try:
            with python_rng(seed):
                super(HybridMixin, trainer).training_step(model, copied(inputs), items)  # type: ignore[misc]
        finally:
            trainer.accelerator = accelerator
        if keeper.loss is None:
            raise BadInput(
                f"{type(trainer).__name__}.training_step never calls accelerator.backward, so that HybridTrainer does "
                "not know its loss: let it call that, or override compute_loss instead"
            )
        # HybridSGD takes the mean of what are parts of a mean already.
        return keeper.loss * len(self._arguments)

    def _next(self) -> Any:
        """The Trainer itself where there is a graph, or else a stand-in for it."""
        if self._waits and (torch.is_grad_enabled() or not self._has_exact):
            self._waits = False
            return self._trainer
        stand_in, compute = self._snapshot.stand_in(), self._trainer.compute_loss
        if isinstance(compute, LossWatch):
            compute = compute.original
        if getattr(compute, "__self__", None) is self._trainer:  # perhaps set on this Trainer, not in its class
            compute = MethodType(compute.__func__, stand_in)
        stand_in.compute_loss = compute
        return stand_in


class _LossKeeper:
    """An Accelerator that keeps the loss instead of differentiating it."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self.loss: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)

    def backward(self, loss: Tensor, **_: Any) -> None:
        """Keep the loss."""
        self.loss = loss
