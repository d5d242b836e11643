"""Ask of a step written by hand whether it is a zeroth-order gradient: python examples/verify.py.

The step perturbs the weights in place, as MeZO does, and descends along the same direction. The restore drifts, which
the suite finds; the rest is right. `smoothlab verify examples/verify.py:mezo` asks all questions.
"""

import torch

import smoothlab


def mezo(params, lr, seed, mu=1e-3):
    """The step as a function of the closure."""
    words = torch.Generator().manual_seed(seed)

    def move(word, factor):
        generator = torch.Generator().manual_seed(word)
        for p in params:
            p.data += factor * torch.randn(p.shape, generator=generator, dtype=p.dtype)

    @torch.no_grad()
    def step(closure):
        word = int(torch.randint(2**31, (1,), generator=words))
        move(word, mu)
        plus = closure()
        move(word, -2 * mu)
        minus = closure()
        move(word, mu)
        move(word, -lr * float(plus - minus) / (2 * mu))
        return plus

    return step


if __name__ == "__main__":
    report = smoothlab.verify(mezo, probes=["along", "coefficients", "tensors", "seeds", "restored_fp32"])
    print(report)
    assert report.wrong == ["restored_fp32"]
