"""Pictures to pixel values for LGQ models, and decoded pixel values back to pictures.

Shape letters: B images, C channels, H W height and width of the batch, h w those of one picture before padding.
"""

import base64
import errno
import math
import operator
import os
import stat
import urllib.request
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_base import ImageProcessingMixin  # noqa: F401  # where diffusers looks for it
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ChannelDimension, ImageInput, PILImageResampling, SizeDict, is_valid_image
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import logging

_EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})
_SIXTEEN_BIT_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I"})
_CHANNEL_COUNTS = (1, 3, 4)
logger = logging.get_logger(__name__)

# Keys that transformers writes to preprocessor_config.json (or once wrote) and hands back to the constructor.
_BOOKKEEPING = frozenset({"auto_map", "feature_extractor_type", "image_processor_type", "processor_class"})
_DOWNLOAD_TIMEOUT_SECONDS = 60
# Formats that are opened, whatever a file is called: others of Pillow's readers start programs (EPS: Ghostscript).
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
MAX_BYTES = 256 * 2**20  # of what is fetched from an address


class LGQImageProcessorKwargs(ImagesKwargs, total=False):
    """Options of LGQImageProcessor: those of transformers' ImagesKwargs, and one more.

    pad_to_multiple_of (`int`): height and width are padded up to a multiple of it; the model's downsampling factor.
    """

    pad_to_multiple_of: int


class LGQImageProcessor(PilBackend):
    """Turns pictures into `pixel_values` for an LGQ model, and the model's decoded pixels back into pictures.

    Each picture is turned upright (EXIF), converted to RGB, resized (`do_resize`), centre-cropped (`do_center_crop`),
    rescaled to [0, 1], normalised with `image_mean` and `image_std` (by default to [-1, 1]) and padded at the bottom
    and right by repeating its edge up to a multiple of `pad_to_multiple_of`.

    Takes PIL images, paths, http(s) and data:image URLs, numpy arrays and torch tensors, one or a (nested) list:
      * PIL: transparency is composited over white; 16-bit grey (I;16*, and I, which must lie in 0..65535) is rounded
        to 8 bits (v * 255 / 65535); CMYK, YCbCr, LAB and HSV are converted by Pillow, colour profiles are not applied;
        mode F is refused, its range is not known. Of 16-bit *colour* files Pillow itself reads only the high byte.
      * Arrays: (H,W), (H,W,C) or (C,H,W) with C = 1 (repeated), 3 or 4 (RGBA, over white), or a batch of rank 4;
        uint8, or floats in [0, 1] with `do_rescale=False`. Where C could be at either end, `input_data_format` must
        say where it is. `do_resize` takes uint8 only.
    With `do_convert_rgb=False` whatever is not RGB already is refused.
    """

    valid_kwargs = LGQImageProcessorKwargs

    do_convert_rgb = True
    do_resize = False
    size = SizeDict(shortest_edge=256)
    default_to_square = False
    resample = PILImageResampling.LANCZOS
    do_center_crop = False
    crop_size = SizeDict(height=256, width=256)
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = (0.5, 0.5, 0.5)
    image_std = (0.5, 0.5, 0.5)
    do_pad = True
    pad_to_multiple_of = 8

    def __init__(self, **kwargs: Unpack[LGQImageProcessorKwargs]) -> None:
        options = set(self.valid_kwargs.__annotations__)
        # The base class would keep a misspelt option as an attribute that nothing reads.
        if unknown := sorted(set(kwargs) - options - _BOOKKEEPING):
            raise TypeError(f"LGQImageProcessor: unknown options {unknown}; expected some of {sorted(options)}")
        super().__init__(**kwargs)  # type: ignore[misc]  # declared for ImagesKwargs; stores all of valid_kwargs
        self._validate_preprocess_kwargs(**{name: getattr(self, name) for name in options})

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> "LGQImageProcessor":
        """As in the base class; options that only another version of this package knows give a warning."""
        known = {*cls.valid_kwargs.__annotations__, *_BOOKKEEPING}
        if unknown := sorted(image_processor_dict.keys() - known):
            logger.warning(f"preprocessor_config.json has options that this image processor does not read: {unknown}")
        return super().from_dict({k: v for k, v in image_processor_dict.items() if k in known}, **kwargs)

    def __call__(self, images: Any, **kwargs: Unpack[LGQImageProcessorKwargs]) -> BatchFeature:  # type: ignore[override]
        """Turns pictures into pixel values.

        Args:
            images: one picture or a (nested) list, of the kinds that the class names.
            **kwargs: options for this call alone; `return_tensors` "pt" or "np" stacks the pictures, without it the
                BatchFeature holds lists, and the pictures may differ in size.

        Returns:
            BatchFeature with pixel_values (B,3,H,W) float32, (p - image_mean) / image_std of pixels p in [0, 1], and
            original_sizes (B,2) int64, height and width after resize and crop but before padding.

        Raises:
            ValueError: no picture at all; pictures that cannot be stacked, or are smaller than the crop; a wrong rank,
                channel count, dtype, mode, value or option.
            TypeError: an unknown option, or something that is no picture.
        """
        return self.preprocess(images, **kwargs)

    def postprocess(
        self,
        pixel_values: torch.Tensor,
        original_sizes: torch.Tensor | np.ndarray | Sequence[Sequence[int]] | None = None,
        output_type: str = "pil",
    ) -> list[Any]:
        """Turns decoded pixel values into pictures: the inverse of `__call__` under this processor's own options.

        Args:
            pixel_values: (B,3,H,W), any float dtype and device, normalised with image_mean and image_std. Clamped to
                the range of a picture, because a decoder overshoots it by a little.
            original_sizes: (B,2) integers as `__call__` returned them, the height and width to crop each picture to
                (the padding lies at the bottom and right); None keeps all of (H,W).
            output_type: "pil", "np" or "pt".

        Returns:
            A list of B pictures. "pil": RGB images, values rounded half to even; "np": (h,w,3) float32 arrays in
            [0, 1]; "pt": (3,h,w) float32 tensors in [0, 1], detached, on the device of pixel_values.

        Raises:
            ValueError: wrong shape, dtype, sizes or output_type, or values that are not finite.
            TypeError: pixel_values is no tensor.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type: expected 'pil', 'np' or 'pt', got {output_type!r}")
        sizes = _checked_sizes(original_sizes, _checked_decoded(pixel_values))
        pixels = pixel_values.detach().float()
        if self.do_normalize:
            mean = torch.tensor(self.image_mean, device=pixels.device).reshape(-1, 1, 1)
            std = torch.tensor(self.image_std, device=pixels.device).reshape(-1, 1, 1)
            pixels = pixels * std + mean
        if self.do_rescale:
            # Exactly 1 for the default 1/255; another rescale_factor puts white somewhere else than at 1.
            pixels = pixels / (255 * self.rescale_factor)
        pixels = pixels.clamp(0, 1)
        if output_type == "pil":
            pixels = (pixels * 255).round().to(torch.uint8)
        pictures = [picture[:, :height, :width] for picture, (height, width) in zip(pixels, sizes, strict=True)]
        if output_type == "pt":
            return pictures
        arrays = [np.ascontiguousarray(picture.permute(1, 2, 0).cpu().numpy()) for picture in pictures]
        return arrays if output_type == "np" else [Image.fromarray(array) for array in arrays]

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list[Any]:
        # Not fetch_images: it converts what it opens to RGB at once, which drops transparency and clips 16-bit values.
        if isinstance(images, list | tuple):
            flat = [picture for item in images for picture in self._prepare_images_structure(item)]
        elif isinstance(images, str | os.PathLike):
            flat = [_open_picture(images)]
        elif is_valid_image(images):
            flat = list(images) if getattr(images, "ndim", 0) == expected_ndims + 1 else [images]
        else:
            expected = "a PIL image, path, URL, numpy array, torch tensor or a list of these"
            raise TypeError(f"expected {expected}, got {type(images).__name__}")
        if not flat:
            raise ValueError("expected at least one image, got none: an empty batch has no known height and width")
        return flat

    def process_image(
        self,
        image: ImageInput,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Converts one picture to a (3,h,w) array: uint8 in 0..255, or float32 in [0, 1] with do_rescale=False."""
        if isinstance(image, Image.Image):
            if not do_convert_rgb and (image.mode != "RGB" or image.has_transparency_data):
                raise ValueError(f"do_convert_rgb=False expects opaque RGB pictures, got mode {image.mode!r}")
            array, input_data_format = _array_from_pil(image), ChannelDimension.LAST
        elif isinstance(image, torch.Tensor):
            # float() because numpy has no bfloat16
            array = (image.float() if image.is_floating_point() else image).detach().cpu().numpy()
        else:
            array = np.asarray(image)
        came = image.dtype if isinstance(image, torch.Tensor) else array.dtype
        array = _checked_values(array, str(came), rescaled_later=bool(kwargs.get("do_rescale")))
        if array.ndim == 2:
            array, input_data_format = array[None], ChannelDimension.FIRST
        data_format = _channel_dimension(array, input_data_format)
        channel_axis = 0 if data_format == ChannelDimension.FIRST else -1
        if do_convert_rgb:
            array = self.convert_to_rgb(array, input_data_format=data_format)
        elif array.shape[channel_axis] != 3:
            raise ValueError(f"do_convert_rgb=False expects 3 channels, got an array of shape {array.shape}")
        return np.moveaxis(array, channel_axis, 0)

    def resize(self, image: np.ndarray, size: SizeDict, *args: Any, **kwargs: Any) -> np.ndarray:
        """Resizes a (3,h,w) uint8 array with Pillow; raises ValueError for floats."""
        if image.dtype != np.uint8:
            # The base class would squeeze floats through 8 bits, and take a black and white picture for 0..255.
            raise ValueError(f"do_resize works on uint8 pictures, got {image.dtype}; pass uint8, or resize beforehand")
        return super().resize(image, size, *args, **kwargs)

    def center_crop(self, image: np.ndarray, size: SizeDict, **kwargs: Any) -> np.ndarray:  # type: ignore[override]
        """Crops the middle out of a (3,h,w) array; raises ValueError if it is smaller than the crop."""
        if not (size.height and size.width):
            raise ValueError(f"crop_size: expected a height and a width of at least 1, got {dict(size)}")
        height, width = image.shape[-2:]
        if height < size.height or width < size.width:
            # The base class would surround it with black.
            found = f"a picture of {height}x{width} is smaller than the crop {size.height}x{size.width}"
            raise ValueError(f"do_center_crop: {found}; set do_resize=True and a size that covers it, or crop less")
        return super().center_crop(image, size, **kwargs)

    def _preprocess(  # type: ignore[override]  # always called by name
        self,
        images: list[Any],
        do_pad: bool,
        pad_to_multiple_of: int,
        return_tensors: str | None,
        **kwargs: Any,
    ) -> BatchFeature:
        images = super()._preprocess(images, do_pad=False, return_tensors=None, **kwargs)["pixel_values"]
        original_sizes = [image.shape[-2:] for image in images]
        if do_pad:
            for i, size in enumerate(original_sizes):
                height, width = (math.ceil(edge / pad_to_multiple_of) * pad_to_multiple_of for edge in size)
                images[i] = self.pad([images[i]], pad_size=SizeDict(height, width), padding_mode="edge")[0]
        if return_tensors is None:
            return BatchFeature({"pixel_values": images, "original_sizes": original_sizes})
        shapes = sorted({image.shape for image in images})
        if len(shapes) > 1:
            found = ", ".join(f"{height}x{width}" for _, height, width in shapes[:5]) + ", ..." * (len(shapes) > 5)
            raise ValueError(
                f"pictures of different sizes cannot be stacked into one batch, got {found} after padding; "
                "process them one at a time, or make them equal with do_resize=True and do_center_crop=True"
            )
        # normalize() leaves arrays in Fortran order, which np.stack alone would keep.
        pixel_values = np.stack(images, out=np.empty((len(images), *shapes[0]), dtype=np.float32))
        data = {"pixel_values": pixel_values, "original_sizes": np.array(original_sizes, dtype=np.int64)}
        return BatchFeature(data, tensor_type=return_tensors)

    def _validate_preprocess_kwargs(self, **kwargs: Any) -> None:  # type: ignore[override]  # always called by name
        multiple = kwargs.pop("pad_to_multiple_of")
        if not isinstance(multiple, int) or isinstance(multiple, bool) or multiple < 1:
            raise ValueError(f"pad_to_multiple_of: expected a positive int, got {multiple!r}")
        # transformers offers these to every image processor; here they would do nothing.
        for name in ("pad_size", "device", "disable_grouping", "image_seq_length"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name}: LGQImageProcessor has no use for it, got {kwargs[name]!r}; leave it out")
        if kwargs.get("data_format") not in (None, ChannelDimension.FIRST):
            raise ValueError(f"data_format: pixel_values are always channels_first, got {kwargs['data_format']!r}")
        super()._validate_preprocess_kwargs(**kwargs)
        if kwargs["do_rescale"] and not 0 < kwargs["rescale_factor"] < math.inf:
            raise ValueError(f"rescale_factor: expected a positive number, got {kwargs['rescale_factor']}")
        for name in ("image_mean", "image_std") if kwargs["do_normalize"] else ():
            values = np.asarray(kwargs[name])
            if values.shape not in ((), (3,)) or not np.isfinite(values).all():
                raise ValueError(f"{name}: expected one finite number or one per channel (3), got {kwargs[name]}")
            if name == "image_std" and (values <= 0).any():
                raise ValueError(f"image_std: expected positive numbers, got {kwargs[name]}")


def _open_picture(source: str | os.PathLike) -> Image.Image:
    """Opens a path, http(s) URL or data:image URL as `read_image` does."""
    content: str | os.PathLike | bytes = source
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        with urllib.request.urlopen(source, timeout=_DOWNLOAD_TIMEOUT_SECONDS) as response:
            content = read_bounded(response)
    elif isinstance(source, str) and source.startswith("data:image/"):
        content = base64.b64decode(source.partition(",")[2], validate=True)
    elif not os.path.exists(source):
        raise ValueError(f"expected a file's path, an http(s) URL or a data:image URL, got {str(source)[:200]!r}")
    try:
        return read_image(content)
    except ValueError as error:
        raise ValueError(f"{str(source)[:200]}: {error}") from error


def read_bounded(stream: Any) -> bytes:
    """All of a stream from elsewhere; `ValueError` for more than `MAX_BYTES`."""
    content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes, which are read of an address at most")
    return content


@cache
def formats() -> tuple[str, ...]:
    """Formats that are opened, as Pillow names them; those that it was built without are left out."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def read_image(source: str | os.PathLike | bytes) -> Image.Image:
    """Reads a file, or the content of one, to its end and turns it upright as its EXIF orientation says.

    Returns:
        The image, of any mode; what Pillow warns of is left to the filters of `warnings`.

    Raises:
        ValueError: the file is missing, forbidden, no regular file, no image of one of `formats`, truncated, damaged,
            or has more pixels than `PIL.Image.MAX_IMAGE_PIXELS`; the message is one line without the path.
    """
    if not isinstance(source, bytes):
        _check_file(source)
    elif not source:
        raise ValueError("empty file")
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=formats()) as image:
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(f"{image.width}x{image.height}")  # Pillow itself may only warn
            return ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow's readers meet hostile bytes with errors of every type
        raise ValueError(reason_of(error)) from error


def _check_file(path: str | os.PathLike) -> None:
    """Refuses what cannot be opened like a file; opening a named pipe would wait for ever."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise ValueError(reason_of(error)) from error
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")
    if not status.st_size:
        raise ValueError("empty file")


def reason_of(error: Exception) -> str:
    """Why an image could not be read, in one line."""
    text = (str(error).splitlines() or [""])[0]
    if isinstance(error, UnidentifiedImageError):
        return f"not an image that can be read, or damaged in its header; formats: {', '.join(formats())}"
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return f"decompression bomb: more than {Image.MAX_IMAGE_PIXELS} pixels ({text})"
    if isinstance(error, MemoryError):
        return "not enough memory to read it"
    if isinstance(error, OSError) and error.errno is not None:
        words = {errno.ENOENT: "no such file", errno.EACCES: "permission denied", errno.EPERM: "permission denied"}
        return words.get(error.errno, os.strerror(error.errno))
    if "truncated" in text.lower():  # not all formats' readers say so
        return "truncated: the file ends before the picture does"
    return f"damaged or truncated: {text or type(error).__name__}"


def _array_from_pil(image: Image.Image) -> np.ndarray:
    """Turns a PIL image of any supported mode upright and into (h,w), (h,w,3) or (h,w,4: RGBA) uint8."""
    image = ImageOps.exif_transpose(image)
    if image.mode in _EIGHT_BIT_MODES:
        return np.array(image.convert("RGBA" if image.has_transparency_data else "RGB"))
    if image.mode not in _SIXTEEN_BIT_MODES:
        modes = ", ".join(sorted(_EIGHT_BIT_MODES | _SIXTEEN_BIT_MODES))
        raise ValueError(
            f"PIL image of mode {image.mode!r}: expected one of {modes}; scale it to 0..255 in 'L' or 'RGB'"
        )
    values = np.asarray(image).astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > 65535):
        found = f"{values.min()}..{values.max()}"
        raise ValueError(
            f"PIL image of mode {image.mode!r}: expected values in 0..65535, got {found}; scale it to 8 bits"
        )
    # A PNG may name one grey value as transparent: over white it is white.
    if "transparency" in image.info:
        values[values == image.info["transparency"]] = 65535
    # v * 255 / 65535 is v / 257, and 257 is odd: no value lies halfway.
    return ((values + 128) // 257).astype(np.uint8)


def _checked_values(array: np.ndarray, came: str, rescaled_later: bool) -> np.ndarray:
    """Refuses ranks, dtypes and values that do not say what they mean; returns uint8, or float32 in [0, 1]."""
    if array.ndim not in (2, 3) or 0 in array.shape:
        shapes = "(H,W), (H,W,C) or (C,H,W), at least one pixel large, or a batch of rank 4"
        raise ValueError(f"expected pictures of shape {shapes}; got one of shape {array.shape}")
    if rescaled_later:
        if array.dtype != np.uint8:
            advice = "convert it, or pass floats in [0, 1] with do_rescale=False"
            raise ValueError(f"expected uint8 values in 0..255, got {came}; {advice}")
        return array
    if not np.issubdtype(array.dtype, np.floating):
        advice = "leave do_rescale=True for PIL images and uint8 arrays"
        raise ValueError(f"do_rescale=False expects floats in [0, 1], got {came}; {advice}")
    low, high = array.min(), array.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("do_rescale=False expects finite floats in [0, 1], got NaN or infinity")
    if low < 0 or high > 1:
        raise ValueError(f"do_rescale=False expects floats in [0, 1], got {low}..{high}; scale them, or pass uint8")
    return array.astype(np.float32)


def _channel_dimension(array: np.ndarray, named: str | ChannelDimension | None) -> ChannelDimension:
    """Where the channels of an array of rank 3 are: where the caller says, or at the only end that fits."""
    ends = {ChannelDimension.FIRST: array.shape[0], ChannelDimension.LAST: array.shape[-1]}
    places = [end for end in ends if named in (None, end)]
    fitting = [end for end in places if ends[end] in _CHANNEL_COUNTS]
    if not fitting:
        where = " or ".join(end.value for end in places) or f"input_data_format={named!r}"
        raise ValueError(f"expected 1, 3 or 4 channels ({where}), got an array of shape {array.shape}")
    if len(fitting) > 1:
        # transformers would take the first: an RGB picture of one row would be read as a grey one, three pixels wide.
        advice = "pass input_data_format='channels_first' or 'channels_last'"
        raise ValueError(f"either end of shape {array.shape} may be the channels; {advice}")
    return fitting[0]


def _checked_decoded(pixel_values: torch.Tensor) -> torch.Size:
    """Refuses anything but a finite float tensor (B,3,H,W); returns its shape."""
    if not isinstance(pixel_values, torch.Tensor):
        raise TypeError(f"pixel_values: expected a torch tensor, got {type(pixel_values).__name__}")
    shape = pixel_values.shape
    if len(shape) != 4 or shape[1] != 3 or 0 in shape[2:] or not pixel_values.is_floating_point():
        found = f"{pixel_values.dtype} of shape {tuple(shape)}"
        raise ValueError(f"pixel_values: expected floats of shape (B,3,H,W), got {found}")
    if not torch.isfinite(pixel_values).all():
        raise ValueError("pixel_values: expected finite values, got NaN or infinity; check the model's output")
    return shape


def _checked_sizes(original_sizes: Any, shape: torch.Size) -> list[tuple[int, int]]:
    """The (height, width) to crop each picture of a (B,3,H,W) batch to."""
    batch, _, padded_height, padded_width = shape
    if original_sizes is None:
        return [(padded_height, padded_width)] * batch
    try:
        sizes = [(operator.index(height), operator.index(width)) for height, width in original_sizes]
    except (TypeError, ValueError) as error:
        raise ValueError(f"original_sizes: expected (B,2) integers (height, width), got {original_sizes!r}") from error
    if len(sizes) != batch:
        raise ValueError(f"original_sizes: expected one size for each of {batch} pictures, got {len(sizes)}")
    for height, width in sizes:
        if not (1 <= height <= padded_height and 1 <= width <= padded_width):
            limits = f"1x1 to {padded_height}x{padded_width} (the padded size)"
            raise ValueError(f"original_sizes: expected {limits}, got {height}x{width}")
    return sizes
