"""What the generation benchmark measures: token after token by five ways of decoding, and masked steps.

All ways run the same network with the same weights, guided, to tokens: decoding them to pictures is the tokenizer's
work and the same for all. No way is timed whose likeliest tokens are not those of a pass in float64 over the whole
picture.
"""

import argparse
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from benchmarks.harness import (
    Isolated,
    Row,
    Timed,
    Timing,
    admit,
    begin,
    compare,
    line,
    result_name,
    shared_protocol,
    time_in_turns,
)
from benchmarks.results_file import write_result
from lgq_hf import LGQConfig, LGQImageProcessor, LGQModel
from lgq_hf.generation import (
    LGQAutoregressivePipeline,
    LGQMaskedConfig,
    LGQMaskedPipeline,
    LGQMaskedTransformer,
    llama_config,
)

# name: what it is; the first one is what the others are compared with
VARIANTS = {
    "generate": "model.generate(), its default cache, negative_prompt_ids for guidance",
    "generate_static": "the same with cache_implementation='static'",
    "dynamic": "LGQAutoregressivePipeline, cache_implementation='dynamic'",
    "static": "LGQAutoregressivePipeline, cache_implementation='static' (its default)",
    "static_compiled": "the same after pipe.transformer.compile()",
}
ANSWER_S = 1800  # to compile on a CPU is slow
STEPS = (4, 8, 12, 24)  # of the masked pipeline
# by how much of the range of its logits the likeliest code may miss that of the float64 pass
MARGINS = {"float32": 1e-5, "bfloat16": 0.05}


@dataclass(frozen=True)
class Setting:
    """Networks and batch of a run of the benchmark."""

    hidden_size: int
    layers: int
    heads: int
    codes: int
    side: int
    classes: int
    batch: int
    dtype: str
    guidance: float
    timing: Timing


_CPU = Setting(256, 8, 4, 4096, 16, 10, 8, "float32", 2.0, Timing(5, 0.0, (1, 1), 120.0))
SETTINGS = {
    "cpu": _CPU,
    "cuda": replace(_CPU, hidden_size=768, layers=12, heads=12, codes=16384, classes=1000, dtype="bfloat16"),
    "quick": replace(_CPU, hidden_size=32, layers=2, codes=64, side=4, batch=2, timing=Timing(2, 0.0, (1, 1), 9)),
}


def protocol(setting: Setting) -> dict[str, Any]:
    """How the figures came about."""
    return {
        "setting": asdict(setting),
        "network": "random weights; the same for all ways of decoding",
        "call": "from class labels to all tokens of a batch, drawn at temperature 1; the first, which compiles, apart",
        "gate": "at temperature 0 each token is the likeliest of a pass in float64 over the whole picture, within "
        f"{MARGINS[setting.dtype]} of the range of its logits",
        "ways": VARIANTS,
        "masked": f"LGQMaskedPipeline of the same width and depth, in {list(STEPS)} steps; gate: the same seed gives "
        "the same tokens, and none is masked",
    }


def _tokenizer(setting: Setting) -> tuple[LGQModel, LGQImageProcessor]:
    """The smallest that has these codes: it is not run."""
    small: dict[str, Any] = {"base_channels": 8, "channel_multiplier": [1], "num_res_blocks": 1, "latent_channels": 8}
    return LGQModel(LGQConfig(**small, codebook_size=setting.codes)).eval(), LGQImageProcessor(pad_to_multiple_of=1)


class _Generation(Timed):
    """A pipeline that makes a batch of token grids."""

    def __init__(
        self, setting: Setting, device: str, seed: int, threads: int, limit_bytes: int | None, network: Any
    ) -> None:
        super().__init__(device, setting.timing, threads, limit_bytes)
        self.setting, self.seed = setting, seed
        self.dtype = getattr(torch, setting.dtype)
        self.network = network.eval().to(device, self.dtype)
        self.classes = [number % setting.classes for number in range(setting.batch)]

    def prepare(self) -> dict[str, Any]:
        """As [`Timed`], and the seconds of the very first call."""
        begin = time.perf_counter()
        self._call()
        first = time.perf_counter() - begin
        return {"first_call_s": first, **super().prepare()}

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)


class AutoregressiveBench(_Generation):
    """One of `VARIANTS`."""

    def __init__(
        self, variant: str, setting: Setting, device: str, seed: int, threads: int, limit_bytes: int | None
    ) -> None:
        torch.manual_seed(seed)
        config = llama_config(
            codebook_size=setting.codes,
            num_classes=setting.classes,
            num_tokens=setting.side**2,
            hidden_size=setting.hidden_size,
            intermediate_size=setting.hidden_size * 8 // 3 // 32 * 32,
            num_hidden_layers=setting.layers,
            num_attention_heads=setting.heads,
        )
        super().__init__(setting, device, seed, threads, limit_bytes, LlamaForCausalLM(config))
        self.variant = variant
        self.pipe: Any = LGQAutoregressivePipeline(*_tokenizer(setting), self.network)
        self.pipe.set_progress_bar_config(disable=True)
        if variant == "static_compiled":
            self.network.compile()

    def tokens(self, *, greedy: bool) -> Tensor:
        """(B,T) int64: the likeliest, or drawn at temperature 1."""
        if self.variant.startswith("generate"):
            return self._by_generate(greedy)
        cache = "dynamic" if self.variant == "dynamic" else "static"
        made = self.pipe(
            self.classes,
            guidance_scale=self.setting.guidance,
            temperature=0.0 if greedy else 1.0,
            generator=self._generator(),
            cache_implementation=cache,
            output_type="token",
        )
        return made.images.flatten(1)

    def _by_generate(self, greedy: bool) -> Tensor:
        setting = self.setting
        first = torch.tensor(self.classes, device=self.device)[:, None] + setting.codes
        cache = {"cache_implementation": "static"} if self.variant == "generate_static" else {}
        made = self.network.generate(
            first,
            negative_prompt_ids=torch.full_like(first, setting.codes + setting.classes),
            guidance_scale=setting.guidance,
            max_new_tokens=setting.side**2,
            suppress_tokens=list(range(setting.codes, setting.codes + setting.classes + 1)),
            do_sample=not greedy,
            **({} if greedy else {"top_k": 0}),  # all codes; the default draws from 50
            **cache,
        )
        return made[:, 1:]

    def _call(self) -> None:
        self.tokens(greedy=False)

    @torch.no_grad()
    def gate(self) -> dict[str, Any]:
        """Compares the likeliest tokens with those of a pass in float64 over the whole picture."""
        setting = self.setting
        tokens = self.tokens(greedy=True)
        if tokens.shape != (setting.batch, setting.side**2):
            return {"failures": [f"tokens of shape {tuple(tokens.shape)}"]}
        with torch.random.fork_rng():
            exact = LlamaForCausalLM(self.network.config).eval().to(self.device, torch.float64)
        exact.load_state_dict(self.network.state_dict())
        worst = 0.0
        for row, number in zip(tokens, self.classes, strict=True):
            prefix = torch.tensor([[number], [setting.classes]], device=self.device) + setting.codes
            ids = torch.cat([prefix, row[None, :-1].expand(2, -1)], 1)
            logits = exact(ids, use_cache=False).logits[..., : setting.codes]
            guided = logits[1] + setting.guidance * (logits[0] - logits[1])
            most, least = guided.amax(-1), guided.amin(-1)
            missed = (most - guided.gather(-1, row[:, None])[:, 0]) / (most - least)
            worst = max(worst, float(missed.max()))
        margin = MARGINS[setting.dtype]
        return {"worst": worst, "failures": [f"a token misses by {worst:.2g}"] if worst > margin else []}


class MaskedBench(_Generation):
    """`LGQMaskedPipeline` with a number of steps."""

    def __init__(
        self, steps: int, setting: Setting, device: str, seed: int, threads: int, limit_bytes: int | None
    ) -> None:
        torch.manual_seed(seed)
        config = LGQMaskedConfig(
            codebook_size=setting.codes,
            num_classes=setting.classes,
            grid_height=setting.side,
            grid_width=setting.side,
            hidden_size=setting.hidden_size,
            num_hidden_layers=setting.layers,
            num_attention_heads=setting.heads,
        )
        super().__init__(setting, device, seed, threads, limit_bytes, LGQMaskedTransformer(config))
        self.steps = steps
        self.pipe: Any = LGQMaskedPipeline(*_tokenizer(setting), self.network)
        self.pipe.set_progress_bar_config(disable=True)

    def tokens(self) -> Tensor:
        """(B,h,w) int64."""
        made = self.pipe(
            self.classes,
            num_inference_steps=self.steps,
            guidance_scale=self.setting.guidance,
            generator=self._generator(),
            output_type="token",
        )
        return made.images

    def _call(self) -> None:
        self.tokens()

    def gate(self) -> dict[str, Any]:
        """The same seed gives the same tokens, all of them codes."""
        one, other = self.tokens(), self.tokens()
        failures = [] if torch.equal(one, other) else ["the same seed gave other tokens"]
        return {"failures": failures + (["a token is masked"] if int(one.max()) >= self.setting.codes else [])}


def measure(names: Iterable[str], start: Callable[[str], Any], setting: Setting, base: str) -> dict[str, Row]:
    """A row for each name: seconds of a batch, images a second, memory; against the row `base`."""
    with ExitStack() as stack:
        workers, rows = admit(names, start, stack)
        time_in_turns(workers, rows, setting.timing)
    compare(rows, base, setting.batch)
    return rows


def run(arguments: argparse.Namespace) -> int:
    """Measures both kinds and writes the file after each; 1 where something was refused."""
    device, quick = arguments.device, arguments.quick
    setting = SETTINGS["quick" if quick else device]
    result, limit_bytes = begin(arguments)
    result["protocol"] = {**protocol(setting), **shared_protocol(device, limit_bytes)}
    settings = (setting, device, arguments.seed, torch.get_num_threads(), limit_bytes)
    chosen = [name for name in VARIANTS if name == "generate" or name in (arguments.variant or VARIANTS)]
    kinds: dict[str, tuple[Iterable[str], Callable[[str], Any]]] = {
        "autoregressive": (chosen, lambda name: Isolated(AutoregressiveBench, name, *settings, answer_s=ANSWER_S)),
        "masked": (map(str, STEPS), lambda steps: Isolated(MaskedBench, int(steps), *settings, answer_s=ANSWER_S)),
    }
    for kind, (names, start) in kinds.items():
        result[kind] = measure(names, start, setting, "generate")
        path = write_result(result_name("generate", device, quick), result, arguments.output)
        for name, row in result[kind].items():
            print(line(f"{kind} {name}", row), flush=True)
    print(path)
    return int(any("refused" in row for kind in kinds for row in result[kind].values()))
