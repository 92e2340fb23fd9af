"""DICOM -> the picture that a person is shown, as an 8-bit PIL image; and the rules by which the corpus reads DICOM too.

In this order (PS3.3): stored value; RescaleSlope and RescaleIntercept (C.11.1), which give the modality's unit, of CT
Hounsfield units; the window (C.11.2); MONOCHROME1 inverted (C.7.6.3.1.2). The window is the caller's, else the first item
of the VOILUTSequence, else the first WindowCenter and WindowWidth with their VOILUTFunction, else the whole range: of 8
stored bits, which are display levels already, all that they can hold; of others from the frame's minimum to its maximum.

Boxes are in columns and rows of the stored pixel matrix: nothing is turned, cropped or resampled here.

A header holds personal data. Only elements that pixels need are read, and no message quotes text of one. pydicom's own
messages, warnings and log lines do quote it, so none of them gets through.

Sources: https://dicom.nema.org/medical/dicom/2024a/output/chtml/part03/sect_C.11.2.html; of enhanced multi-frame files
section C.7.6.16.2 (PixelValueTransformationSequence, FrameVOILUTSequence).
"""

from __future__ import annotations

import logging
import math
import struct
import sys
import warnings
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .dicom_windows import VoiTable, VoiWindow
from .image_errors import check_num_pixels
from .intensity_windows import IntensityWindow, linear_levels, picture_of, refuse_presets, show_through, unit_levels
