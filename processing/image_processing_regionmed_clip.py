"""RegionMedClipImageProcessor: medical pictures of any kind -> `pixel_values`, and how each lies in the model frame.

Two geometries. "pad" (default) keeps the aspect ratio, makes the image as large as fits and centres it on black, so no
lesion is cropped away. "source" repeats the geometry of a checkpoint one started from, as its own processor had it:
`size` either {"height", "width"} (squash) or {"shortest_edge"}, then a centre crop to `crop_size` if `do_center_crop`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling
from transformers.processing_utils import ImagesKwargs

from .image_errors import plain_index
from .intensity_windows import plain_windows
from .medical_image import decode_image
from .nifti_slice import slice_axis_number
from .region_boxes import FrameGeometry

GEOMETRIES = ("pad", "source")
CROP_ROUNDINGS = {"down": math.floor, "half_even": round}
UNSUPPORTED_OPTIONS = ("do_pad", "pad_size", "data_format", "input_data_format")


class RegionMedClipImageProcessorKwargs(ImagesKwargs, total=False):
    """Settings beyond those of every image processor.

    patch_size: side of a square patch of the vision tower, in frame pixels; must divide the frame.
    geometry: "pad" or "source", see the head of the file.
    crop_rounding: of geometry "source", where a centre crop begins that lies between two pixels: "down" (transformers)
        or "half_even" (torchvision and with it open_clip).
    window: which measured values of DICOM, NIfTI, 16-bit or float images are shown as black to white: a preset of CT
        ("lung", "mediastinum", "bone", "brain", "subdural", "abdomen"), (center, width) in the image's own units, or
        three of these for red, green and blue; see `intensity_windows`.
    frame_index: which frame, from 0, of files with several; for a call also a list with one for each image, or None.
    slice_axis: of NIfTI volumes "axial" (2), "coronal" (1) or "sagittal" (0); see `nifti_slice`.
    slice_index: of NIfTI volumes which slice, from 0; for a call also a list with one for each image, or None.
    """

    patch_size: int
    geometry: Literal["pad", "source"]
    crop_rounding: Literal["down", "half_even"]
    window: str | list[Any] | tuple[Any, ...] | None
    frame_index: int | list[int | None] | tuple[int | None, ...] | None
    slice_axis: str | int
    slice_index: int | list[int | None] | tuple[int | None, ...] | None


class RegionMedClipImageProcessor(PilBackend):
    """Pictures of any kind (see `medical_image.decode_image`) -> (B, 3, H, W) float32 `pixel_values`.

    A call does exactly `frame` on each image, then `normalize_frames` on all; both are public so that a cache may keep
    the uint8 frames between them. Every setting may be overridden in a call or in `from_pretrained`.

    Raises:
        ValueError: for a geometry that is unknown or without a fixed frame, a patch size that does not divide it, and
            a window or slice_axis that is not known.
    """

    valid_kwargs = RegionMedClipImageProcessorKwargs
    model_input_names = ["pixel_values"]
    size = {"height": 224, "width": 224}
    default_to_square = True
    patch_size = 16
    geometry = "pad"
    crop_rounding = "down"
    window = None
    frame_index = None
    slice_axis = "axial"
    slice_index = None
    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_center_crop = False

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        if self.geometry not in GEOMETRIES:
            raise ValueError(f"geometry {self.geometry!r} is not known; it must be one of {', '.join(GEOMETRIES)}.")
        if self.crop_rounding not in CROP_ROUNDINGS:
            raise ValueError(
                f"crop_rounding {self.crop_rounding!r} is not known; it must be one of {', '.join(CROP_ROUNDINGS)}."
            )
        self.window = plain_windows(self.window)
        for name in ("frame_index", "slice_index", "slice_axis"):
            setattr(self, name, plain_index(getattr(self, name)))
        slice_axis_number(self.slice_axis)
        for name in UNSUPPORTED_OPTIONS:
            if getattr(self, name, None) is not None:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is not supported here; leave it out. `geometry` says how to pad."
                )
        width, height = self.frame_size
        if self.patch_size < 1 or width % self.patch_size or height % self.patch_size:
            raise ValueError(
                f"patch_size {self.patch_size} does not divide the frame of {width} x {height} pixels; both sides must "
                "be multiples of it. Give the patch size of the vision tower, and a frame it can tile."
            )

    @property
    def frame_size(self) -> tuple[int, int]:
        """(width, height) in pixels of the frame that the model sees."""
        is_cropped = self.geometry == "source" and self.do_center_crop
        size = self.crop_size if is_cropped else self.size
        if size is None or not (size.height and size.width):
            raise ValueError(
                f"geometry {self.geometry!r} with {'crop_size' if is_cropped else 'size'} {size} has no fixed frame; "
                'it needs "height" and "width". With {"shortest_edge"}, use geometry="source", do_center_crop=True and '
                "crop_size."
            )
        return size.width, size.height

    @property
    def grid_size(self) -> tuple[int, int]:
        """(h, w): rows and columns of patches in the frame."""
        width, height = self.frame_size
        return height // self.patch_size, width // self.patch_size

    def geometry_for(self, width: int, height: int) -> FrameGeometry:
        """How an original image of this size, in pixels, lies in the frame."""
        original = (int(width), int(height))
        if not self.do_resize:
            if self.geometry == "pad" and any(side > limit for side, limit in zip(original, self.frame_size)):
                raise ValueError(
                    f"an image of {width} x {height} pixels does not fit the frame {self.frame_size}; with "
                    'do_resize=False and geometry "pad" it must. Turn do_resize on.'
                )
            return FrameGeometry.centred(original, original, self.frame_size)
        if self.geometry == "pad":
            return FrameGeometry.padded(original, self.frame_size)
        rounding = CROP_ROUNDINGS[self.crop_rounding]
        return FrameGeometry.centred(original, self._source_size(original), self.frame_size, rounding)

    def _source_size(self, original: tuple[int, int]) -> tuple[int, int]:
        """(width, height) after the resizing of the source checkpoint's own processor, rounded as it rounds."""
        if self.size.height and self.size.width:
            return self.size.width, self.size.height
        short, long = min(original), max(original)
        edge = self.size.shortest_edge
        if not edge or self.size.longest_edge:
            raise ValueError(
                f'size {self.size} is not supported; give {{"height", "width"}}, or {{"shortest_edge"}} alone.'
            )
        stretched = int(edge * long / short)
        return (edge, stretched) if original[0] <= original[1] else (stretched, edge)

    def picture(self, image: Any, name: str = "image") -> Image.Image:
        """What `frame` shows the model: an 8-bit PIL image of the original's size, boxes of which are boxes of it.

        Args:
            image, name: see `frame`. To give the result to a processor that has a window, say `window=None` there.
        """
        return decode_image(
            image,
            name,
            window=self.window,
            frame_index=self.frame_index,
            slice_axis=self.slice_axis,
            slice_index=self.slice_index,
        )

    def frame(self, image: Any, name: str = "image") -> tuple[np.ndarray, FrameGeometry]:
        """The image as the model frame before normalisation, uint8 (3, H, W), and how it lies in it.

        Args:
            image: anything `medical_image.decode_image` reads.
            name: what messages call it.
        """
        return self.frame_picture(self.picture(image, name))

    def frame_picture(self, picture: Image.Image) -> tuple[np.ndarray, FrameGeometry]:
        """What `frame` gives for a picture that is as the model shall see it: window, frame and slice are chosen.

        Args:
            picture: 8-bit PIL image of mode "L" or "RGB", upright, as `picture` gives it.
        """
        geometry = self.geometry_for(*picture.size)
        if geometry.resized != picture.size:
            picture = picture.resize(geometry.resized, resample=self.resample)
        levels = np.asarray(picture)  # (h, w) grey or (h, w, 3): grey is resized once, not three times
        levels = levels[None] if levels.ndim == 2 else levels.transpose(2, 0, 1)
        width, height = geometry.frame
        left, top = geometry.offset
        right, bottom = left + geometry.resized[0], top + geometry.resized[1]
        frame = np.zeros((3, height, width), dtype=np.uint8)
        seen = levels[:, max(0, -top) : height - top, max(0, -left) : width - left]
        frame[:, max(0, top) : min(height, bottom), max(0, left) : min(width, right)] = seen
        return frame, geometry

    def frame_all(self, images: Any) -> list[tuple[np.ndarray, FrameGeometry]]:
        """What `frame` gives for every image of a batch, each at its own `frame_index` and `slice_index` if listed.

        Args:
            images: one image, a list of images of any kinds, or one array or tensor of 4 dimensions.
        """
        listed = list_images(images)
        choices = {name: getattr(self, name) for name in ("frame_index", "slice_index")}
        choices = {name: values for name, values in choices.items() if isinstance(values, (list, tuple))}
        for name, values in choices.items():
            if len(values) != len(listed):
                raise ValueError(
                    f"{name} has {len(values)} entries for {len(listed)} images; give one for each, or None."
                )
        framed = []
        for i, image in enumerate(listed):
            own = {name: values[i] for name, values in choices.items()}
            framed.append(self.with_overrides(**own).frame(image, f"image {i}"))
        return framed

    def normalize_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) float32: rescaled, then standardised per channel, in one multiply-add on the device of `frames`.

        Args:
            frames: (B, 3, H, W) uint8, as `frame` gives them.
        """
        factor = self.rescale_factor if self.do_rescale else 1.0
        scale, shift = torch.full((3,), factor, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
        if self.do_normalize:
            std = torch.tensor(self.image_std, dtype=torch.float64).expand(3)
            shift = -torch.tensor(self.image_mean, dtype=torch.float64).expand(3) / std
            scale = scale / std
        scale, shift = (values.float().to(frames.device).view(1, 3, 1, 1) for values in (scale, shift))
        return frames.to(torch.float32).mul_(scale).add_(shift)

    def with_overrides(self, **kwargs: Any) -> RegionMedClipImageProcessor:
        """This processor, or a copy with the given settings changed; an unknown setting is a ValueError."""
        if not kwargs:
            return self
        unknown = sorted(set(kwargs) - set(self.valid_kwargs.__annotations__))
        if unknown:
            raise ValueError(
                f"settings {unknown} are not known; known are {sorted(self.valid_kwargs.__annotations__)}."
            )
        return type(self)(**{**self.to_dict(), **kwargs})

    def preprocess(self, images: Any, *, return_tensors: Any = None, **kwargs: Any) -> BatchFeature:
        """BatchFeature of `pixel_values` (B, 3, H, W) float32; one image is a batch of one.

        Args:
            images: one image, a list of images of any kinds, or one array or tensor of 4 dimensions.
            return_tensors: "pt", "np" or None (a list of arrays).
            kwargs: settings for this call only.
        """
        worker = self.with_overrides(**kwargs)
        frames = np.stack([frame for frame, _ in worker.frame_all(images)])
        pixel_values = worker.normalize_frames(torch.from_numpy(frames)).numpy()
        data = {"pixel_values": pixel_values if return_tensors is not None else list(pixel_values)}
        return BatchFeature(data, tensor_type=return_tensors)


def is_single_image(images: Any) -> bool:
    """Whether this is one image and not a batch of them."""
    if isinstance(images, (np.ndarray, torch.Tensor)):
        return images.ndim != 4
    return isinstance(images, (str, Path, bytes, bytearray, Image.Image)) or not isinstance(images, Sequence)


def list_images(images: Any) -> list[Any]:
    """The images of a batch, one by one; a single image is a batch of one, and lists of images in a list are joined.

    Raises:
        ValueError: for no image at all, and for lists within lists within the list.
    """
    listed = [images] if is_single_image(images) else list(images)
    if listed and all(isinstance(group, (list, tuple)) for group in listed):  # a list per text, in the library's way
        listed = [image for group in listed for image in group]
    if not listed:
        raise ValueError("images is empty; it must hold at least one image. Leave `images` out to encode text only.")
    for i, image in enumerate(listed):
        if isinstance(image, (list, tuple)):
            raise ValueError(
                f"image {i} is a {type(image).__name__}; images must be one flat list. Flatten the batch first."
            )
    return listed
