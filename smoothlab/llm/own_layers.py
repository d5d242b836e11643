"""Layers of the PEFT methods that peft does not have: `unitary`, and `boft-ga`, the mix of BOFT and LoRA-GA.

Each is a layer of peft's LoRA with other parameters, so that peft saves, loads, merges and freezes it as its own.
"""

from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn


class OwnLinear(LoraLinear):  # type: ignore[misc]
    """A linear layer under one of smoothlab's own methods; merging keeps the base weight, to unmerge exactly."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: Any, **kwargs: Any) -> None:
        if not isinstance(base_layer, nn.Linear):
            raise ValueError(
                f"a layer of type {type(base_layer).__name__} is not torch.nn.Linear: leave it out of target_modules"
            )
        if config.use_dora or config.lora_bias:
            raise ValueError("use_dora and lora_bias have no place in this method: leave them out")
        self.kept: list[Tensor] = []  # base weights before each merge
        super().__init__(base_layer, adapter_name, config, **kwargs)

    def adapted(self, x: Tensor, adapter: str) -> Tensor:
        """Output of the layer with the adapter, of inputs [..., in_features]."""
        raise NotImplementedError

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Output of the layer, with its active adapter unless that is merged or switched off."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters or self.merged:
            plain: Tensor = self.base_layer(x)
            return plain
        if len(self.active_adapters) != 1:
            raise ValueError(
                f"{type(self).__name__} computes with one adapter at a time: set one of {self.active_adapters}"
            )
        return self.adapted(x, self.active_adapters[0])

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapter's change to the base weight."""
        weight = self.get_base_layer().weight
        for adapter in check_adapters_to_merge(self, adapter_names):
            change = self.get_delta_weight(adapter).to(weight.dtype)
            if safe_merge and not bool(torch.isfinite(change).all()):
                raise ValueError(
                    f"adapter {adapter} has weights that are not finite: train it at a lower learning rate"
                )
            self.kept.append(weight.data)
            weight.data = weight.data + change
            self.merged_adapters.append(adapter)

    def unmerge(self) -> None:
        """Put the base weight back, to the bit."""
        while self.merged_adapters:
            self.merged_adapters.pop()
            self.get_base_layer().weight.data = self.kept.pop()


class UnitaryLinear(OwnLinear):
    """y = W U x, with a structured unitary U as in uRNN; U is exactly the identity at the start.

    Neighboring entries of x are the real and imaginary parts of in/2 complex numbers, on which

        U = D_3 R_2 F* D_2 R_1 F D_1,   D = diag(exp(i theta)),   R = I + (exp(i phi) - 1) v v* / v*v,

    F the unitary Fourier transform. Every angle gives a unitary U, so that no step leads away from orthogonality; on
    real vectors U is orthogonal. 3.5 in + 2 parameters a layer, in log(in) operations a token. Arjovsky, Shah, Bengio
    (2016) compose the same factors with a fixed permutation and reflections of phi = pi, which never give the identity.
    """

    adapter_layer_names = (*LoraLayer.adapter_layer_names, "lora_phases", "lora_turns", "lora_reflectors")

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: Any, **kwargs: Any) -> None:
        """Add an adapter, whose angles are 0; reflectors are drawn from the global generator."""
        size = self.in_features
        if size % 2:
            raise ValueError(f"a layer with {size} inputs: pairs of inputs are complex numbers, use an even number")
        self.r[adapter_name], self.scaling[adapter_name] = r, 1.0
        for name, value in (
            ("lora_phases", torch.zeros(3, size // 2)),
            ("lora_turns", torch.zeros(2)),
            ("lora_reflectors", torch.randn(2, size // 2, 2)),
        ):
            if name not in self._modules:
                self.add_module(name, nn.ParameterDict())
            self.get_submodule(name)[adapter_name] = nn.Parameter(value)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def rotated(self, x: Tensor, adapter: str) -> Tensor:
        """U x of real vectors [..., in_features], in fp32 at least."""
        wide = torch.promote_types(self.lora_phases[adapter].dtype, torch.float32)
        first, second, third = (unit(angle) for angle in self.lora_phases[adapter].to(wide))
        turns = unit(self.lora_turns[adapter].to(wide))
        reflectors = torch.view_as_complex(self.lora_reflectors[adapter].to(wide).contiguous())
        z = torch.view_as_complex(x.to(wide).unflatten(-1, (-1, 2)).contiguous()) * first
        spectrum = torch.fft.fft(z, norm="ortho")
        # The change alone goes back through the transform: at angles of 0 it is 0, and U is the identity to the bit.
        change = second * reflected(spectrum, reflectors[0], turns[0]) - spectrum
        z = z + torch.fft.ifft(change, norm="ortho")
        z = third * reflected(z, reflectors[1], turns[1])
        return torch.view_as_real(z).flatten(-2)

    def adapted(self, x: Tensor, adapter: str) -> Tensor:
        """W U x, with the base layer's bias."""
        result: Tensor = self.base_layer(self.rotated(x, adapter).to(x.dtype))
        return result

    def factor(self, adapter: str) -> Tensor:
        """U as a real orthogonal matrix [in, in]."""
        phases = self.lora_phases[adapter]
        wide = torch.promote_types(phases.dtype, torch.float32)
        return self.rotated(torch.eye(self.in_features, device=phases.device, dtype=wide), adapter).T

    def get_delta_weight(self, adapter: str) -> Tensor:
        """W U - W."""
        factor = self.factor(adapter)
        weight = self.get_base_layer().weight.to(factor.dtype)
        return weight @ factor - weight


class MixLinear(OwnLinear):
    """y = w_boft BOFT(x) + w_lora LoRAGA(x), with weights w that sum to 1 and follow the parts' gradient norms.

        BOFT(x) = s * (W R x) + b,   R = blockdiag((I - K)(I + K)^-1)',   K skew,
        LoRAGA(x) = W x + b + scaling (B A - B_0 A_0) x,

    where A_0, B_0 are LoRA-GA's start, kept as constants, so that the base model stays as it is, and y = W x + b at the
    start whatever w is. BOFT is peft's with one butterfly factor, as peft itself computes it without a CUDA extension.
    The weights are constants of the loss; `smoothlab.llm.mixing` moves them after each step.
    """

    adapter_layer_names = (*LoraLayer.adapter_layer_names, "lora_skew", "lora_scale")

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: Any, **kwargs: Any) -> None:
        """Add an adapter: LoRA as peft starts it, BOFT as the identity, equal weights."""
        size, block = self.in_features, config.boft_block_size
        if block < 2 or size % block:
            raise ValueError(
                f"a layer with {size} inputs is not divided by boft_block_size={block}: "
                f"use a divisor of {size}, at least 2"
            )
        for name in ("lora_skew", "lora_scale"):
            if name not in self._modules:
                self.add_module(name, nn.ParameterDict())
        if "lora_mix" not in self._modules:
            self.lora_mix = nn.ModuleDict()
        self.lora_skew[adapter_name] = nn.Parameter(torch.zeros(size // block, block, block))
        self.lora_scale[adapter_name] = nn.Parameter(torch.ones(self.out_features))
        # In fp32 like peft's own adapters, whatever the base layer's type is.
        mix = _Mix(r, size, self.out_features, config.smoothing)
        self.lora_mix[adapter_name] = mix.to(self.get_base_layer().weight.device)
        super().update_layer(adapter_name, r, lora_alpha, config, **kwargs)
        with torch.no_grad():
            self.keep_start(adapter_name)

    def keep_start(self, adapter: str) -> None:
        """Take LoRA's present factors as A_0 and B_0, at which it changes nothing."""
        mix = self.mix(adapter)
        mix.start_in.copy_(self.lora_A[adapter].weight)
        mix.start_out.copy_(self.lora_B[adapter].weight)

    def mix(self, adapter: str) -> "_Mix":
        """Buffers of the adapter beside its parameters."""
        mix = self.lora_mix[adapter]
        assert isinstance(mix, _Mix)
        return mix

    def parts(self, adapter: str) -> tuple[list[Tensor], list[Tensor]]:
        """Parameters of BOFT, and those of LoRA-GA."""
        boft = [self.lora_skew[adapter], self.lora_scale[adapter]]
        return boft, [self.lora_A[adapter].weight, self.lora_B[adapter].weight]

    def blocks(self, adapter: str) -> Tensor:
        """The orthogonal blocks of R' [in / size, size, size], in fp32 at least."""
        unconstrained = self.lora_skew[adapter]
        unconstrained = unconstrained.to(torch.promote_types(unconstrained.dtype, torch.float32))
        skew = (unconstrained - unconstrained.mT) / 2
        identity = torch.eye(len(skew[0]), device=skew.device, dtype=skew.dtype).expand_as(skew)
        return torch.linalg.solve(identity + skew, identity - skew, left=False)

    def adapted(self, x: Tensor, adapter: str) -> Tensor:
        """The weighted mean of both parts' outputs."""
        blocks, mix = self.blocks(adapter), self.mix(adapter)
        weights = mix.weights()
        grouped = x.to(blocks.dtype).unflatten(-1, (len(blocks), -1))
        turned = torch.einsum("...gi,gij->...gj", grouped, blocks).flatten(-2)
        plain, rotated = self.base_layer(x), self.base_layer(turned.to(x.dtype))
        if self.get_base_layer().bias is not None:
            rotated = rotated - self.get_base_layer().bias
            boft = self.lora_scale[adapter] * rotated - (plain - self.get_base_layer().bias)
        else:
            boft = self.lora_scale[adapter] * rotated - plain
        a, b = self.lora_A[adapter].weight, self.lora_B[adapter].weight
        wide = self.lora_dropout[adapter](x.to(a.dtype))
        # Two products and their difference, which is 0 to the bit at the start.
        lora = wide @ a.T @ b.T - wide @ mix.start_in.to(a.dtype).T @ mix.start_out.to(a.dtype).T
        change = weights[0] * boft + weights[1] * self.scaling[adapter] * lora
        result: Tensor = (plain + change).to(x.dtype)
        return result

    def factor(self, adapter: str) -> Tensor:
        """The rotation R of the BOFT part as one matrix [in, in]: its orthogonal blocks along the diagonal."""
        return torch.block_diag(*self.blocks(adapter)).T

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The sum that both parts add to the base layer's weight W [out, in].

        w_boft (diag(s) W R - W) + w_lora scaling (B A - B_0 A_0), the sum that merging adds to W.
        """
        factor, mix = self.factor(adapter), self.mix(adapter)
        weights, weight = mix.weights(), self.get_base_layer().weight.to(factor.dtype)
        boft = self.lora_scale[adapter][:, None] * (weight @ factor) - weight
        a, b = self.lora_A[adapter].weight, self.lora_B[adapter].weight
        lora = b @ a - (mix.start_out @ mix.start_in).to(b.dtype)
        change: Tensor = weights[0] * boft + weights[1] * self.scaling[adapter] * lora
        return change


class _Mix(nn.Module):
    """Constants of one adapter in one layer: LoRA-GA's start, and the smoothed gradient norms of BOFT and LoRA-GA.

    Buffers, so that they move, are saved and are loaded with the adapter; no two names hold one another.
    """

    start_in: Tensor
    start_out: Tensor
    norms: Tensor

    def __init__(self, rank: int, inputs: int, outputs: int, smoothing: float) -> None:
        super().__init__()
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing={smoothing:g}: use at least 0 and less than 1")
        self.smoothing = smoothing
        self.register_buffer("start_in", torch.zeros(rank, inputs))
        self.register_buffer("start_out", torch.zeros(outputs, rank))
        self.register_buffer("norms", torch.zeros(2))

    def weights(self) -> Tensor:
        """(w_boft, w_lora) = norms / sum(norms); one half each before the first gradient."""
        total = self.norms.sum()
        return torch.where(total > 0, self.norms / total, torch.full_like(self.norms, 0.5))

    def observe(self, norms: Tensor) -> None:
        """Take in the gradient norms of a step: the first as they are, later ones with the weight 1 - smoothing."""
        if float(self.norms.sum()) > 0:
            norms = self.smoothing * self.norms + (1 - self.smoothing) * norms
        self.norms.copy_(norms)


def unit(angle: Tensor) -> Tensor:
    """exp(i angle), exactly 1 where the angle is 0."""
    return torch.complex(torch.cos(angle), torch.sin(angle))


def reflected(z: Tensor, v: Tensor, turn: Tensor) -> Tensor:
    """R z with R = I + (turn - 1) v v* / v*v: the part of z along v is multiplied with `turn`, of absolute value 1."""
    along = (z @ v.conj()) / torch.view_as_real(v).square().sum()
    return z + (turn - 1) * along[..., None] * v
