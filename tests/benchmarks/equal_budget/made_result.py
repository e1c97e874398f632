"""A result file made by hand, with numbers that can be checked in the head."""

from typing import Any

from benchmarks.equal_budget.methods import METHODS

LABELS = {name: method.label for name, method in METHODS.items()}


def metrics(psnr: float, frechet: float, used: int, **others: float) -> dict[str, Any]:
    """All metrics that tables look at."""
    return {
        "psnr": psnr,
        "ssim": psnr / 40,
        "perceptual": frechet / 100,
        "frechet_distance": frechet,
        "top1_agreement": 0.5,
        "codes_used": used,
        "perplexity": used / 2,
        "entropy_bits": 9.0,
        "bits_per_pixel_by_entropy": used / 2000,
        "relative_quantization_error": 0.1,
        **others,
    }


def run(stage: str, method: str, psnr: float, frechet: float, used: int, **fields: Any) -> dict[str, Any]:
    """A run; `fields` replaces what it has."""
    codes, seed = fields.get("codes", 1024), fields.get("seed", 0)
    return {
        "name": f"{stage}-{method}-k{codes}-seed{seed}",
        "stage": stage,
        "method": method,
        "setting": 0,
        "codes": codes,
        "seed": seed,
        "arm": None,
        "overrides": {},
        "metrics": metrics(psnr, frechet, used),
        "codebook_counts": " ".join(str(1 + 2 * (used - code)) for code in range(used)),
        "curve": {"step": "500 1000", "loss": "0.2 0.1"},
        "validation": {"step": "500 1000", "psnr": f"{psnr - 2} {psnr}", "ssim": "0.5 0.6"},
        "seconds": 100.0,
        "pictures_per_second": 320.0,
        "peak_mib": 700.0,
        "peak_of": "process",
        "parameters": {"all": 400_000, "quantizer": 8192},
        "commit": "0123456789abcdef",
        "colours": {"psnr_matched": psnr + 1, "shares": {"grey": 0.01, "green_magenta": 0.25, "red_blue": 0.02}},
        **fields,
    }


def failed(stage: str, method: str, **fields: Any) -> dict[str, Any]:
    """A run that diverged."""
    whole = run(stage, method, 0.0, 0.0, 0, **fields)
    return {
        **{name: whole[name] for name in ("name", "stage", "method", "setting", "codes", "seed", "arm", "overrides")},
        "commit": whole["commit"],
        "failed": "loss or gradient is not finite at step 7, which was not taken",
    }


def result() -> dict[str, Any]:
    """LGQ and FSQ with three seeds, SimVQ with two, IBQ with one and a failed one."""
    runs = [
        *(run("compare", "lgq", psnr, frechet, 800, seed=seed) for seed, (psnr, frechet) in enumerate(_LGQ)),
        *(run("compare", "fsq", psnr, frechet, 1000, seed=seed) for seed, (psnr, frechet) in enumerate(_FSQ)),
        *(run("compare", "simvq", psnr, 100.0, 1024, seed=seed) for seed, psnr in enumerate((24.5, 24.7))),
        run("compare", "ibq", 24.0, 120.0, 900),
        failed("compare", "lfq"),
        run("trend", "lgq", 22.0, 150.0, 250, codes=256),
        run("trend", "fsq", 21.0, 160.0, 256, codes=256),
        run("tradeoff", "lgq", 25.1, 88.0, 500, name="tradeoff-usage_0.05"),
        run("tradeoff", "lgq", 24.0, 95.0, 1024, name="tradeoff-usage_0.5"),
        run("ablate", "lgq", 24.5, 99.0, 790, name="ablate-init_kmeans"),
        *(
            run("tune", "fsq", 23.0 + setting, 0.0, 500 + setting, setting=setting, name=f"tune-fsq-{setting}")
            for setting in range(3)
        ),
        failed("tune", "fsq", setting=3, name="tune-fsq-3"),
    ]
    return {
        "commit": "0123456789abcdef",
        "versions": {"lgq_hf": "0", "torch": "2"},
        "hardware": {"cpu": "a CPU", "threads": 1, "gpu": None},
        "scale": {
            "name": "cpu",
            "image_size": 32,
            "downsampling": 4,
            "codes": 1024,
            "trend": [256, 4096],
            "steps": 1000,
            "tuning_steps": 300,
            "batch_size": 32,
            "crops": {"train": 40_000, "validation": 512, "test": 2048},
        },
        "crops": {
            "size": 32,
            "counts": {"train": 40_000, "validation": 512, "test": 2048},
            "seed": 0,
            "max_scale": 4.0,
            "min_std": 0.03,
            "corpus": {"manifest_sha256": "ab" * 32, "source_pictures": {"train": 3, "validation": 2, "test": 2}},
            "sha256": "cd" * 32,
        },
        "protocol": {"test": {"pictures": 2048, "extractor": "efficientnet-lite0", "extractor_sha256": "ef" * 32}},
        "shared_recipe": {
            "model": {"base_channels": 8, "channel_multiplier": [1, 4, 8], "latent_channels": 32},
            "loss": {"pixel": "l1", "perceptual": "none", "perceptual_weight": 1.0},
            "optimizer": {"learning_rate": 0.002, "warmup_steps": 50, "schedule": "cosine", "ema_decay": 0.99},
        },
        "methods": {
            name: {
                "label": LABELS[name],
                "source": "a paper",
                "settings": [f"setting {number} of {name}" for number in range(4)],
                "fixed": "",
                "chosen": 2 if name == "fsq" else 0,
                "tuning": [],
            }
            for name in METHODS
        },
        "arms": [
            _arm("ablate", "codes begin by", "init_random", "random", "compare-lgq-k1024-seed0"),
            _arm("ablate", "codes begin by", "init_kmeans", "kmeans", "ablate-init_kmeans"),
            _arm("ablate", "widths", "widths", "learned", "ablate-widths"),
            _arm("tradeoff", "lambda_peak as tuned", "usage_0.005", "lambda_usage 0.005", "compare-lgq-k1024-seed0"),
            _arm("tradeoff", "lambda_peak as tuned", "usage_0.05", "lambda_usage 0.05", "tradeoff-usage_0.05"),
            _arm("tradeoff", "lambda_peak as tuned", "usage_0.5", "lambda_usage 0.5", "tradeoff-usage_0.5"),
        ],
        "runs": runs,
    }


_LGQ = [(25.0, 90.0), (25.2, 92.0), (25.4, 88.0)]
_FSQ = [(24.0, 100.0), (24.4, 100.0), (24.2, 110.0)]


def _arm(stage: str, group: str, name: str, label: str, run: str) -> dict[str, str]:
    return {"stage": stage, "group": group, "name": name, "label": label, "run": run}
