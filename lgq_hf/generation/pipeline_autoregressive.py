"""Pictures from a Llama: token after token in raster order."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM, StaticCache

from lgq_hf.generation.pipeline_base import Callback, Generators, Label, LGQPipeline, LGQPipelineOutput
from lgq_hf.generation.sampling import at_least_fp32, guide, sample, uniform_noise
from lgq_hf.tokenizer.image_processing_lgq import LGQImageProcessor
from lgq_hf.tokenizer.modeling_lgq import LGQModel

CACHES = ("static", "dynamic", "none")


class LGQAutoregressivePipeline(LGQPipeline):
    """Class labels to pictures by next-token prediction; completes pictures whose upper part is given.

    The network is `LlamaForCausalLM` over [codes | classes | none] (`lgq_hf.generation.llama`). With guidance, each
    step runs it once on a batch with and without classes. `pipe.transformer.compile()` makes it faster: with the
    static cache all steps have one shape. docs/generating.md has numbers.

    Args:
        vqvae: the tokenizer whose tokens the transformer learned.
        image_processor: of that tokenizer.
        transformer: vocabulary K + classes + 1.
        grid_height, grid_width: of tokens; `None`: the square that the transformer has positions for.
        id2label: names of classes by number, by which they can be asked for.
        tokens_made_by: what the manifest of the tokens says of the tokenizer; another one is then refused.

    Raises:
        ValueError: components that do not belong together.
    """

    def __init__(
        self,
        vqvae: LGQModel,
        image_processor: LGQImageProcessor,
        transformer: LlamaForCausalLM,
        grid_height: int | None = None,
        grid_width: int | None = None,
        id2label: dict | None = None,
        tokens_made_by: dict | None = None,
    ) -> None:
        super().__init__()
        config = transformer.config
        places = config.max_position_embeddings - 1
        side = math.isqrt(places)
        height, width = grid_height or side, grid_width or side
        if height * width != places:
            raise ValueError(
                f"the transformer has positions for a class and {places} tokens, which are not a grid of {height} x "
                f"{width}: give grid_height and grid_width"
            )
        num_classes = config.vocab_size - vqvae.config.codebook_size - 1
        if num_classes < 0:
            raise ValueError(
                f"the transformer's vocabulary of {config.vocab_size} has no place for the tokenizer's "
                f"{vqvae.config.codebook_size} codes and a token for no class: they do not belong together"
            )
        self._register(
            vqvae,
            image_processor,
            transformer,
            num_classes=num_classes,
            grid=(height, width),
            id2label=id2label,
            tokens_made_by=tokens_made_by,
        )

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Label | Sequence[Label] = None,
        num_images_per_label: int = 1,
        guidance_scale: float = 1.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: Generators = None,
        image: Any = None,
        image_tokens: Tensor | None = None,
        keep_rows: int | None = None,
        cache_implementation: str = "static",
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("image_tokens",),
    ) -> LGQPipelineOutput | tuple[Any]:
        """Generates pictures, or completes given ones.

        Args:
            class_labels: a class by number or name, or several; `None` for a picture of no class.
            num_images_per_label: pictures of each.
            guidance_scale: 1: the class as learned; more: further away from pictures of no class, at twice the work;
                0: no class.
            temperature: of the draw of each token; 0 takes the likeliest.
            top_k, top_p: draw from the likeliest codes only.
            generator: for all pictures, or a list with one for each, which then do not depend on what else is made.
            image: pictures (PIL, array, path) to complete, of the generator's size; or `image_tokens` (B,h,w) of them.
            keep_rows: rows of their tokens that are kept, from the top; `None`: half of them.
            cache_implementation: "static" (one shape for all steps, can be compiled), "dynamic" (grows), or "none"
                (everything is computed anew in each step; a reference).
            output_type: "pil", "np", "pt" or "token".
            return_dict: False: a tuple with the pictures.
            callback_on_step_end: called as (pipeline, step, tokens left, {"image_tokens": (B,h,w)}), K where there is
                no token yet; may return {"image_tokens": ...} with another newest token to go on with.
            callback_on_step_end_tensor_inputs: what it is given.

        Returns:
            [`LGQPipelineOutput`] with `images` and `image_tokens` (B,h,w), B labels times `num_images_per_label`.

        Raises:
            ValueError: options out of range; a class, grid or tokens that the generator does not know.
            FloatingPointError: logits that are NaN or infinite.
        """
        classes = self.class_numbers(class_labels, num_images_per_label)
        self._check_sampling(
            guidance_scale, temperature, top_k, top_p, output_type, classes, callback_on_step_end_tensor_inputs
        )
        if cache_implementation not in CACHES:
            raise ValueError(f"cache_implementation: expected one of {list(CACHES)}, got {cache_implementation!r}")
        count, length, device = len(classes), self.grid[0] * self.grid[1], self._execution_device
        tokens_BT = torch.full((count, length), self.codebook_size, dtype=torch.int64, device=device)
        given = self._given(image, image_tokens, keep_rows, count)
        start = 0 if given is None else given.shape[1]
        if given is not None:
            tokens_BT[:, :start] = given
        noise_BT = uniform_noise((length,), count, generator, device)
        decoder = _Decoder(self.transformer, self._prefix(classes, guidance_scale), length, cache_implementation)
        fed, finite = tokens_BT[:, :start], torch.ones((), dtype=torch.bool, device=device)
        for step, place in enumerate(self.progress_bar(range(start, length))):
            logits = decoder(fed)[:, : self.codebook_size]
            if guidance_scale not in (0, 1):
                logits = guide(logits[:count], logits[count:], guidance_scale)
            finite = finite & logits.isfinite().all()
            tokens_BT[:, place] = sample(logits, noise_BT[:, place], temperature=temperature, top_k=top_k, top_p=top_p)
            tokens_BT = self._step_end(callback_on_step_end, callback_on_step_end_tensor_inputs, step, tokens_BT)
            fed = tokens_BT[:, place : place + 1]
        return self._finish(tokens_BT, finite, output_type, return_dict)

    def _prefix(self, classes: Sequence[int], scale: float) -> Tensor:
        """The first tokens (B,1), with guidance (2B,1): classes, then none for each."""
        first = torch.tensor(classes, device=self._execution_device)[:, None] + self.codebook_size
        none = torch.full_like(first, self.codebook_size + self.num_classes)
        if scale == 0:
            return none
        return first if scale == 1 else torch.cat([first, none])

    def _given(self, image: Any, image_tokens: Tensor | None, keep_rows: int | None, count: int) -> Tensor | None:
        """(B, kept tokens) of a picture that is to be completed."""
        tokens = self._given_tokens(image, image_tokens, count)
        if tokens is None:
            if keep_rows is not None:
                raise ValueError("keep_rows needs a picture to keep them of: give image or image_tokens")
            return None
        rows = self.grid[0] // 2 if keep_rows is None else keep_rows
        if not 0 <= rows <= self.grid[0]:
            raise ValueError(f"keep_rows: expected 0 to {self.grid[0]}, the rows of the grid, got {rows}")
        return tokens[:, : rows * self.grid[1]]


class _Decoder:
    """Logits of the next token, from a network that remembers what it was fed.

    Args:
        network: the transformer.
        prefix: (B,1), or (2B,1) where each picture is run with and without its class.
        length: T.
        cache: one of `CACHES`.
    """

    def __init__(self, network: Any, prefix: Tensor, length: int, cache: str) -> None:
        self.network, self.pending = network, prefix
        self.cache: Any = None
        if cache == "static":
            self.cache = StaticCache(config=network.config, max_cache_len=length)
        elif cache == "dynamic":
            self.cache = DynamicCache(config=network.config)
        self.begun = False

    def __call__(self, tokens: Tensor) -> Tensor:
        """Takes tokens (B, n) and returns logits (B or 2B, vocabulary) of what follows, at least fp32."""
        tokens = tokens.repeat(self.pending.shape[0] // tokens.shape[0], 1)
        remembers = self.begun and self.cache is not None
        input_ids = tokens if remembers else torch.cat([self.pending, tokens], 1)
        if self.cache is None:
            self.pending = input_ids
        # only steps of one token into a cache of a fixed size have one shape: other passes are not compiled
        steady = remembers and isinstance(self.cache, StaticCache)
        run = self.network.forward if self.network._compiled_call_impl and not steady else self.network
        use = {"use_cache": False} if self.cache is None else {"use_cache": True, "past_key_values": self.cache}
        logits = run(input_ids=input_ids, logits_to_keep=1, **use).logits[:, -1]
        self.begun = True
        return at_least_fp32(logits)


__all__ = ["LGQAutoregressivePipeline"]
