"""Pictures from a masked transformer: all tokens at once, the likeliest kept, step by step."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lgq_hf.generation.modeling_masked import LGQMaskedTransformer
from lgq_hf.generation.pipeline_base import Callback, Generators, Label, LGQPipeline, LGQPipelineOutput
from lgq_hf.generation.sampling import at_least_fp32, fill_masked, guide, masked_counts, uniform_noise
from lgq_hf.tokenizer.image_processing_lgq import LGQImageProcessor
from lgq_hf.tokenizer.modeling_lgq import LGQModel
from lgq_hf.tokens.collators import SCHEDULES


class LGQMaskedPipeline(LGQPipeline):
    """Class labels to pictures by MaskGIT's decoding (arXiv 2202.04200); fills gaps in pictures that are given.

    Args:
        vqvae: the tokenizer whose tokens the transformer learned.
        image_processor: of that tokenizer.
        transformer: predicts masked tokens.
        grid_height, grid_width: of the transformer's grid; as its configuration says.
        id2label: names of classes by number, by which they can be asked for.
        tokens_made_by: what the manifest of the tokens says of the tokenizer; another one is then refused.

    Raises:
        ValueError: components that do not belong together.
    """

    def __init__(
        self,
        vqvae: LGQModel,
        image_processor: LGQImageProcessor,
        transformer: LGQMaskedTransformer,
        grid_height: int | None = None,
        grid_width: int | None = None,
        id2label: dict | None = None,
        tokens_made_by: dict | None = None,
    ) -> None:
        super().__init__()
        config = transformer.config
        grid = (config.grid_height, config.grid_width)
        for name, asked, has in zip(("height", "width"), (grid_height, grid_width), grid, strict=True):
            if asked not in (None, has):
                raise ValueError(f"grid_{name}={asked}, but the transformer's grid is {grid[0]} x {grid[1]}")
        if config.codebook_size != vqvae.config.codebook_size:
            raise ValueError(
                f"the transformer knows {config.codebook_size} codes, the tokenizer has {vqvae.config.codebook_size}: "
                "they do not belong together"
            )
        self._register(
            vqvae,
            image_processor,
            transformer,
            num_classes=config.num_classes,
            grid=grid,
            id2label=id2label,
            tokens_made_by=tokens_made_by,
        )

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Label | Sequence[Label] = None,
        num_images_per_label: int = 1,
        num_inference_steps: int = 12,
        guidance_scale: float = 1.0,
        temperature: float = 1.0,
        choice_temperature: float = 4.5,
        mask_schedule: str = "cosine",
        top_k: int | None = None,
        top_p: float | None = None,
        generator: Generators = None,
        image: Any = None,
        image_tokens: Tensor | None = None,
        mask_image: Any = None,
        mask: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("image_tokens",),
    ) -> LGQPipelineOutput | tuple[Any]:
        """Generates pictures, or fills in parts of given ones.

        Args:
            class_labels: a class by number or name, or several; `None` for a picture of no class.
            num_images_per_label: pictures of each.
            num_inference_steps: passes of the transformer; more than tokens are not taken.
            guidance_scale: 1: the class as learned; more: further away from pictures of no class, at twice the work;
                0: no class.
            temperature: of the draw of each token; 0 takes the likeliest.
            choice_temperature: noise in the choice of what stays, falling to 0 over a picture's steps.
            mask_schedule: how many tokens are masked after each step, one of `SCHEDULES`.
            top_k, top_p: draw from the likeliest codes only.
            generator: for all pictures, or a list with one for each, which then do not depend on what else is made.
            image: pictures (PIL, array, path) to fill in, of the generator's size; or `image_tokens` (B,h,w) of them.
            mask_image: what to fill: pictures of that size, white where to; a token with any white in it is filled.
                Or `mask` (h,w) or (B,h,w) bool of tokens. What is not filled keeps its tokens; its pixels are those
                that the tokenizer makes of them, together with their neighbours.
            output_type: "pil", "np", "pt" or "token".
            return_dict: False: a tuple with the pictures.
            callback_on_step_end: called as (pipeline, step, tokens left, {"image_tokens": (B,h,w)}), masked ones K;
                may return {"image_tokens": ...} to go on with.
            callback_on_step_end_tensor_inputs: what it is given.

        Returns:
            [`LGQPipelineOutput`] with `images` and `image_tokens` (B,h,w), B labels times `num_images_per_label`.

        Raises:
            ValueError: options out of range, a class, grid or tokens that the generator does not know, a mask without
                a picture or the other way round.
            FloatingPointError: logits that are NaN or infinite.
        """
        classes = self.class_numbers(class_labels, num_images_per_label)
        self._check_sampling(
            guidance_scale, temperature, top_k, top_p, output_type, classes, callback_on_step_end_tensor_inputs
        )
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps: expected at least 1, got {num_inference_steps}")
        if not 0 <= choice_temperature < float("inf"):
            raise ValueError(f"choice_temperature: expected 0 or more, got {choice_temperature}")
        if mask_schedule not in SCHEDULES:
            raise ValueError(f"mask_schedule: expected one of {sorted(SCHEDULES)}, got {mask_schedule!r}")
        tokens_BT = self._start(image, image_tokens, mask_image, mask, len(classes))
        count, length = tokens_BT.shape
        device, mask_token = tokens_BT.device, self.codebook_size
        counts = masked_counts((tokens_BT == mask_token).sum(1), num_inference_steps, SCHEDULES[mask_schedule])
        steps_B = (counts > 0).sum(0) + 1  # that each picture takes: with fewer masked tokens than steps, fewer
        steps = int(steps_B.max()) if bool((tokens_BT == mask_token).any()) else 0
        noise = uniform_noise((num_inference_steps, 2, length), count, generator, device)
        labels = torch.tensor(classes, device=device)
        finite = torch.ones((), dtype=torch.bool, device=device)
        for step in self.progress_bar(range(steps)):
            masked_BT = tokens_BT == mask_token
            logits_BTK = self._logits(tokens_BT, labels, guidance_scale)
            finite = finite & logits_BTK.isfinite().all()
            tokens_BT, masked_BT = fill_masked(
                logits_BTK,
                tokens_BT,
                masked_BT,
                counts[step],
                noise[:, step],
                choice_temperature=choice_temperature * (1 - (step + 1) / steps_B).clamp_min(0)[:, None],
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
            )
            tokens_BT = tokens_BT.masked_fill(masked_BT, mask_token)
            tokens_BT = self._step_end(callback_on_step_end, callback_on_step_end_tensor_inputs, step, tokens_BT)
        return self._finish(tokens_BT, finite, output_type, return_dict)

    def _logits(self, tokens_BT: Tensor, labels: Tensor, scale: float) -> Tensor:
        """(B,T,K) fp32 (fp64 for a model in fp64), guided."""
        if scale == 0:
            labels = torch.full_like(labels, self.num_classes)
        if scale not in (0, 1):
            labels = torch.cat([labels, torch.full_like(labels, self.num_classes)])
            tokens_BT = tokens_BT.repeat(2, 1)
        logits = at_least_fp32(self.transformer(input_ids=tokens_BT, class_labels=labels).logits)
        return logits if scale in (0, 1) else guide(logits[: len(logits) // 2], logits[len(logits) // 2 :], scale)

    def _start(
        self, image: Any, image_tokens: Tensor | None, mask_image: Any, mask: Tensor | None, count: int
    ) -> Tensor:
        """(B,T) int64: all masked, or a given picture masked where it is to be filled."""
        given = self._given_tokens(image, image_tokens, count)
        if mask_image is not None and mask is not None:
            raise ValueError("mask_image and mask are two forms of the same: give one of them")
        fill = self._cells(mask_image) if mask_image is not None else mask
        if (given is None) != (fill is None):
            what, lacks = ("a mask", "a picture") if given is None else ("a picture", "a mask_image or mask")
            raise ValueError(f"{what} was given without {lacks}: to fill in a picture both are needed")
        if given is None or fill is None:
            shape = (count, self.grid[0] * self.grid[1])
            return torch.full(shape, self.codebook_size, dtype=torch.int64, device=self._execution_device)
        fill = fill[None] if fill.ndim == 2 else fill
        if fill.dtype != torch.bool or tuple(fill.shape[1:]) != self.grid or fill.shape[0] not in (1, count):
            raise ValueError(
                f"expected a mask of bool ({self.grid[0]}, {self.grid[1]}), or one for each of {count} pictures, got "
                f"{fill.dtype} of shape {tuple(fill.shape)}"
            )
        return given.masked_fill(fill.flatten(1).to(given.device), self.codebook_size)

    def _cells(self, mask_image: Any) -> Tensor:
        """(B,h,w) bool of pictures that are white where to fill."""
        several = mask_image if isinstance(mask_image, Sequence) else [mask_image]
        masks = []
        for one in several:
            pixels = np.asarray(one.convert("L") if isinstance(one, Image.Image) else one)
            if pixels.shape != self.picture_size or pixels.dtype not in (np.uint8, np.bool_):
                raise ValueError(
                    f"expected mask_image of {self.picture_size[0]} x {self.picture_size[1]} pixels (height x width), "
                    f"8 bits or bool, got {pixels.dtype} of shape {pixels.shape}"
                )
            white = torch.from_numpy(pixels > (0 if pixels.dtype == np.bool_ else 127))
            factor = self.vqvae.config.spatial_downsample_factor
            masks.append(white.unflatten(0, (-1, factor)).unflatten(2, (-1, factor)).any(3).any(1))
        return torch.stack(masks)


__all__ = ["LGQMaskedPipeline"]
