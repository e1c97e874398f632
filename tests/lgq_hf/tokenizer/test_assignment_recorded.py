"""Every backend against tensors recorded from the paper's own code: see tests/fixtures/lgq_official/README.md."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from lgq_hf.tokenizer.assignment import nearest_code, soft_assign

FIXTURES = Path(__file__).parents[2] / "fixtures" / "lgq_official"
MODES = sorted(folder.name for folder in FIXTURES.glob("lgq_flat_*"))
HAS_TRITON = importlib.util.find_spec("triton") is not None
TRITON = pytest.param(
    "triton", marks=[pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed"), pytest.mark.slow]
)


@pytest.mark.parametrize("backend", ["reference", "chunked", TRITON])
@pytest.mark.parametrize("mode", MODES)
def test_outputs_of_the_official_quantizer(mode: str, backend: str) -> None:
    expected = load_file(FIXTURES / mode / "expected.safetensors")
    weights = load_file(FIXTURES / mode / "official_model.safetensors")
    config = json.loads((FIXTURES / mode / "official_config.json").read_text())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x_NC = expected["q.latent"].transpose(1, 2).flatten(0, 1).to(device)  # recorded as (B, C, T)
    centers_KC = weights["quantize.centers"].to(device)
    alpha = weights.get("quantize.alpha")
    widths = None if alpha is None else (F.softplus(alpha) + 1e-6).to(device)
    distance = "cosine" if "_cos_" in mode else "sq_l2"
    assert len(MODES) == 4 and config
    clear = expected["q.top2_logit_gap"].flatten().to(device) > 1e-5
    interpreted = backend == "triton" and device == "cpu"  # a row takes the interpreter 10 ms
    for tau in (0.1,) if interpreted and len(centers_KC) > 100 else (1.0, 0.1):
        assigned = soft_assign(x_NC, centers_KC, tau, widths=widths, distance=distance, backend=backend)  # type: ignore[arg-type]
        soft = expected[f"q.tau{tau}.q_soft"].transpose(1, 2).flatten(0, 1).to(device)
        torch.testing.assert_close(assigned.soft_codes_NC, soft, rtol=1e-4, atol=2e-4)  # official fp32 cdist
        torch.testing.assert_close(assigned.usage_K, expected[f"q.tau{tau}.usage"].to(device), rtol=1e-4, atol=1e-7)
        tokens = expected.get(f"q.tau{tau}.indices", expected["q.tau1.0.indices"]).flatten().long().to(device)
        assert torch.equal(assigned.index_N[clear], tokens[clear])
    assert clear.float().mean() > 0.98
    if interpreted:
        x_NC, tokens, clear = (rows[::8] for rows in (x_NC, tokens, clear))
    found = nearest_code(x_NC, centers_KC, widths=widths, distance=distance, backend=backend)  # type: ignore[arg-type]
    assert torch.equal(found[clear], tokens[clear])
