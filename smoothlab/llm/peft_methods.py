"""The table of PEFT methods: the command line's choices, the docs' lists and the tests' cases are read from it.

A method to add takes one entry in PEFT_METHODS: peft's configuration class, the options that are not peft's defaults,
and those that follow --rank. The tests of tests/llm/test_adapters.py and test_adapters_lm.py then run on it; one
that cannot be trained and measured jointly with the base model gets the reason as its `refusal`. Importing this module
loads neither torch nor peft, so that --help answers at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

DEFAULT_RANK = 8
"""Rank of LoRA and of the methods of its kind, for classifiers and language models; LoRA's alpha is twice its rank."""


@dataclass(frozen=True)
class PeftMethod:
    """A PEFT method, and the tasks that it can be attached for.

    Attributes:
        config: name of peft's configuration class, or of one in `own_methods`; "" where nothing is attached.
        options: options of the configuration that are not peft's defaults.
        ranked: options that are multiples of the rank, with the factor; empty where the method has no rank.
        targets: modules that it adapts: "linear" the query and value projections, "norms" the normalization layers,
            "" what peft chooses.
        refusal: why curvature is not measured under the method; "" where it is.
        trainable: whether it may be trained where no curvature is measured.
        inspected: whether it is attached although it has a refusal, for `adapters.check_derivatives` and the padding
            check to judge: another version of peft may pass them.
        one_sided: whether some base weights get no gradient under it: they can be trained by zeroth order or not at
            all.
        from_gradient: whether it starts from the gradient of a minibatch, see `gradient_start`.
    """

    config: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    ranked: Mapping[str, float] = field(default_factory=dict)
    targets: str = ""
    refusal: str = ""
    trainable: bool = True
    inspected: bool = False
    one_sided: bool = False
    from_gradient: bool = False

    @property
    def virtual_tokens(self) -> int:
        """Positions that a prompt method takes from the model's longest input."""
        return int(self.options.get("num_virtual_tokens", 0))

    def attaches(self, measured: bool) -> bool:
        """Whether the method may be attached for measuring curvature, or for training alone."""
        if not self.refusal:
            return True
        return self.inspected if measured else self.trainable

    def settings(self, rank: int | None = None) -> dict[str, Any]:
        """Options of peft's configuration at a rank, DEFAULT_RANK where it is None.

        >>> PEFT_METHODS["lora"].settings(rank=16)
        {'r': 16, 'lora_alpha': 32}
        """
        result = dict(self.options)
        for name, factor in self.ranked.items():
            result[name] = round(factor * (rank or DEFAULT_RANK))
        return result


def _linear(config: str, ranked: Mapping[str, float] | None = None, **options: Any) -> PeftMethod:
    """A method on the query and value projections."""
    return PeftMethod(config, options, ranked or {}, "linear")


def _refused(refusal: str) -> PeftMethod:
    """A method that is attached nowhere."""
    return PeftMethod(refusal=refusal, trainable=False)


_RANK = {"r": 1}
_LORA = {"r": 1, "lora_alpha": 2}
_NO_GRADIENT = "the base weights under it move the loss but get no gradient from autograd"
_NEEDS_TASK = "its forward pass needs the number of a task beside the sentence"

PEFT_METHODS: dict[str, PeftMethod] = {
    "lora": _linear("LoraConfig", _LORA),
    "rslora": _linear("LoraConfig", _LORA, use_rslora=True),
    "adalora": _linear("AdaLoraConfig", {"target_r": 1, "init_r": 1.5}, total_step=10_000),
    "loha": _linear("LoHaConfig", _RANK),
    "lokr": _linear("LoKrConfig", _RANK),
    "ia3": PeftMethod("IA3Config"),
    # By default peft sums five powers of the skew matrix in place of the rotation, which then is none.
    "oft": _linear("OFTConfig", oft_block_size=4, use_cayley_neumann=False),
    "boft": _linear("BOFTConfig", boft_block_size=4),
    "vera": _linear("VeraConfig", r=64),
    "randlora": _linear("RandLoraConfig", _RANK),
    "fourierft": _linear("FourierFTConfig", n_frequency=100),
    "waveft": _linear("WaveFTConfig", n_frequency=100),
    # smoothlab's reading of the hybrid of arXiv:2507.18076: LoRA-GA, its mix with BOFT, and unitary adapters.
    "lora-ga": PeftMethod("LoraConfig", {}, _LORA, "linear", from_gradient=True),
    "boft-ga": PeftMethod("BoftGaConfig", {"boft_block_size": 4}, _LORA, "linear", from_gradient=True),
    "unitary": _linear("UnitaryConfig"),
    "miss": _linear("MissConfig", _RANK),
    "road": _linear("RoadConfig", group_size=8),
    "gralora": _linear("GraloraConfig", _RANK),
    "hira": _linear("HiraConfig", _RANK),
    "glora": _linear("GloraConfig"),
    "pvera": _linear("PveraConfig", r=64),
    "vblora": _linear("VBLoRAConfig", r=4, num_vectors=64, vector_length=8),
    "unilora": _linear("UniLoraConfig"),
    "tinylora": _linear("TinyLoraConfig"),
    "psoft": _linear("PsoftConfig", _RANK),
    "peanut": _linear("PeanutConfig"),
    "deft": _linear("DeftConfig"),
    "supertuning": _linear("SupertuningConfig"),
    "beft": PeftMethod("BeftConfig"),
    "ln_tuning": PeftMethod("LNTuningConfig", targets="norms"),
    # The virtual tokens start as embeddings of random vocabulary tokens; a prefix without re-parametrization starts,
    # in language models, as the keys and values of such tokens.
    "prompt": PeftMethod("PromptTuningConfig", {"num_virtual_tokens": 10, "prompt_tuning_init": "SAMPLE_VOCAB"}),
    "ptuning": PeftMethod("PromptEncoderConfig", {"num_virtual_tokens": 10, "encoder_hidden_size": 128}),
    "prefix": PeftMethod("PrefixTuningConfig", {"num_virtual_tokens": 5}),
    "cartridge": PeftMethod("CartridgeConfig", {"num_virtual_tokens": 5, "num_frozen_tokens": 0}),
    # Good for training, by their authors' design or by zeroth order, where no curvature is measured.
    "dora": PeftMethod(
        "LoraConfig", {"use_dora": True}, _LORA, "linear", inspected=True,
        refusal="it holds the norm of the weights constant when it differentiates, so its gradient is not the loss's",
    ),
    "delora": PeftMethod(
        "DeloraConfig", {}, _RANK, "linear", inspected=True,
        refusal="its gradient and Hessian products are not finite or wrong at its initial weights",
    ),
    "hra": PeftMethod(
        "HRAConfig", {}, _RANK, "linear", inspected=True, one_sided=True, refusal=_NO_GRADIENT
    ),
    "shira": PeftMethod(
        "ShiraConfig", {}, _RANK, "linear", inspected=True, one_sided=True, refusal=_NO_GRADIENT
    ),
    "adaption_prompt": PeftMethod(
        "AdaptionPromptConfig", {"adapter_len": 10, "adapter_layers": "all"}, refusal="peft does not support it on OPT"
    ),
    # Gradients or Hessian-vector products that are not those of the loss:
    "c3a": PeftMethod(
        "C3AConfig", {"block_size": 4}, targets="linear", trainable=False, inspected=True,
        refusal="its backward pass is not the derivative of its forward pass",
    ),
    "frod": PeftMethod(
        "FrodConfig", targets="linear", trainable=False, inspected=True,
        refusal="its second derivatives are not those of its forward pass",
    ),
    "osf": PeftMethod(
        "OSFConfig", targets="linear", trainable=False, inspected=True,
        refusal="its hooks project the gradient, which is then not the loss's",
    ),
    "lily": PeftMethod(
        "LilyConfig", targets="linear", trainable=False, inspected=True,
        refusal="its routing averages over the batch, so that padding, which gets no gradient, moves the loss",
    ),
    # Nothing that could be attached to a sequence classifier and trained with it:
    "adamss": _refused("peft needs scikit-learn for it, which smoothlab does not install"),
    "cpt": _refused("peft supports it for causal language models only"),
    "poly": _refused(_NEEDS_TASK),
    "multitask_prompt": _refused(_NEEDS_TASK),
    "xlora": _refused("it mixes LoRA modules that were trained before, and brings none of its own"),
    "shadow": _refused("it adds a second model beside the base, with parameters that never reach the loss"),
    "trainable_tokens": _refused("it trains rows of the embedding, which are the base model's own"),
    "bone": _refused("peft has removed it; miss is its successor"),
}  # fmt: skip
"""Name on the command line -> method."""


def attachable(*, measured: bool) -> tuple[str, ...]:
    """Names of the methods that may be attached for measuring curvature, or for training alone.

    >>> "lora" in attachable(measured=True), "dora" in attachable(measured=False), "bone" in attachable(measured=False)
    (True, True, False)
    """
    return tuple(name for name, method in PEFT_METHODS.items() if method.attaches(measured))


MEASURABLE = tuple(name for name, method in PEFT_METHODS.items() if not method.refusal)
"""Names of the methods under which all derivatives are the loss's."""
PeftName = Annotated[str, tyro.conf.arg(metavar="|".join(("auto", "none", *attachable(measured=False))))]
"""Type of the option --peft of training: its choices are the table's names."""
MeasuredPeftName = Annotated[str, tyro.conf.arg(metavar="|".join(("none", *attachable(measured=True))))]
"""Type of the option --peft where curvature or gradients are measured."""
