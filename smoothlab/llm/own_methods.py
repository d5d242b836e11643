"""Configurations of smoothlab's own PEFT methods, and the one call after which plain peft loads what was saved."""

from dataclasses import dataclass, field
from typing import Any

from peft import LoraConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn

from smoothlab.llm.own_layers import MixLinear, UnitaryLinear


class _OwnConfig(LoraConfig):  # type: ignore[misc]
    """peft's LoRA with layers of another class, and a type of its own in adapter_config.json.

    peft does not know that type before `register`, and raises a KeyError that names it, where it would otherwise load
    the adapter as a plain LoRA without effect.
    """

    layer: type[nn.Module]
    stored_type: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self._register_custom_module({nn.Module: self.layer})

    def to_dict(self) -> dict[str, Any]:
        """Fields as they are written to adapter_config.json."""
        return {**super().to_dict(), "peft_type": self.stored_type}


@dataclass
class UnitaryConfig(_OwnConfig):
    """Configuration of `unitary`, see `smoothlab.llm.own_layers.UnitaryLinear`; it has no rank."""

    layer = UnitaryLinear
    stored_type = "SMOOTHLAB_UNITARY"


@dataclass
class BoftGaConfig(_OwnConfig):
    """Configuration of `boft-ga`, see `smoothlab.llm.own_layers.MixLinear`.

    Attributes:
        boft_block_size: size of BOFT's orthogonal blocks, a divisor of each layer's inputs.
        smoothing: weight of the earlier steps' gradient norms, from 0 (the last step alone) to below 1.
    """

    layer = MixLinear
    stored_type = "SMOOTHLAB_BOFT_GA"
    boft_block_size: int = field(default=4)
    smoothing: float = field(default=0.9)


CONFIGS: dict[str, type[_OwnConfig]] = {"UnitaryConfig": UnitaryConfig, "BoftGaConfig": BoftGaConfig}
"""Name in the table of PEFT methods -> configuration."""


def register() -> None:
    """Let peft load adapters of these methods, as `PeftModel.from_pretrained(model, folder)`."""
    for config in CONFIGS.values():
        PEFT_TYPE_TO_CONFIG_MAPPING[config.stored_type] = config
