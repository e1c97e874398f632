"""How much of the decoder's gradient the soft straight-through estimator passes to the encoder.

    python -m benchmarks.straight_through_gain

The gain of a token is ||J^T v|| / ||v|| for a random v, with J = d(soft average) / d(latent); identity has 1.
"""

import torch
from torch.nn import functional as F

from benchmarks.results_file import write_result
from lgq_hf.tokenizer.assignment import soft_assign

ROWS, CODES, CHANNELS, SEED = 2048, 16384, 64, 0


def gains(temperature: float) -> torch.Tensor:
    """Gain of each of ROWS layer-normalised random latents, with CODES codes drawn like them, in float64."""
    generator = torch.Generator().manual_seed(SEED)
    draws = torch.randn(ROWS + CODES, CHANNELS, generator=generator, dtype=torch.float64)
    x_NC, centers_KC = F.layer_norm(draws, (CHANNELS,)).split([ROWS, CODES])
    v_NC = torch.randn(ROWS, CHANNELS, generator=generator, dtype=torch.float64)
    x_NC = x_NC.requires_grad_()
    soft_NC = soft_assign(x_NC, centers_KC, temperature).soft_codes_NC
    (passed_NC,) = torch.autograd.grad((soft_NC * v_NC).sum(), x_NC)
    return passed_NC.norm(dim=1) / v_NC.norm(dim=1)


def main() -> None:
    """Measures at the published first and last temperature."""
    rows = []
    for temperature in (1.0, 0.5, 0.1):
        gain = gains(temperature)
        rows.append({"temperature": temperature, "median": float(gain.median()), "mean": float(gain.mean())})
        print(rows[-1])
    protocol = {"rows": ROWS, "codes": CODES, "channels": CHANNELS, "dtype": "float64", "seed": SEED}
    print(write_result("straight_through_gain", {"protocol": protocol, "gain": rows}))


if __name__ == "__main__":
    main()
