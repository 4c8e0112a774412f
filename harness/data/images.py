"""Decoding: pictures as RGB, masks and labels as index values, each whole or not at all.

Pixels are taken in the order in which the file stores them. EXIF orientation is ignored, for
pictures and masks alike: the masks of VOC, COCO, Cityscapes and ADE20K are drawn on the stored
pixels, and a picture that is turned on reading no longer lies under its mask.
"""

from __future__ import annotations

import errno
import glob
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from harness.errors import UserError
from harness.files import write_with
from harness.reading import opened

#: Modes that have one meaning as eight-bit colours. 16-bit and floating-point pictures have none.
_COLOUR_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})
_DECODE_ERRORS = (SyntaxError, ValueError, EOFError, zlib.error, Image.DecompressionBombError)


#: Largest file of a picture.
_MOST_PICTURE = 1 << 30


@contextmanager
def _opened(path: Path, what: str) -> Iterator[Image.Image]:
    """An open picture; whatever goes wrong while it is open becomes a UserError that names it."""
    try:
        with opened(path, _MOST_PICTURE) as stream, Image.open(stream) as image:
            yield image
    except FileNotFoundError:
        beside = sorted(p.name for p in path.parent.glob(f"{glob.escape(path.stem)}.*"))
        if beside:
            raise UserError(
                f"the {what} is missing; beside its place stands {beside[0]}",
                where=path,
                remedy=f"name all files *{path.suffix}: rename .JPG and .jpeg, convert other formats",
            ) from None
        raise UserError(
            f"the {what} is missing", where=path, remedy="complete the data set, or take its id off the list"
        ) from None
    except UnidentifiedImageError:
        empty = path.stat().st_size == 0
        problem = f"the {what} is an empty file" if empty else f"the {what} is no picture that can be decoded"
        raise UserError(problem, where=path, remedy="copy or unpack the file again") from None
    except PermissionError:
        raise UserError(f"the {what} may not be read", where=path, remedy="check its permissions") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(
                f"the {what} is a symbolic link that leads back to itself",
                where=path,
                remedy="replace the link by the file",
            ) from None
        raise _corrupt(path, what, error) from error
    except _DECODE_ERRORS as error:
        raise _corrupt(path, what, error) from error


def _corrupt(path: Path, what: str, error: Exception) -> UserError:
    return UserError(f"the {what} is corrupt: {error}", where=path, remedy="copy or unpack the file again")


def image_size(path: Path) -> tuple[int, int]:
    """``(H, W)`` from the file's header, without decoding it.

    Raises:
        UserError: the file is missing or no picture.
    """
    with _opened(path, "picture") as image:
        return image.height, image.width


def read_rgb(path: Path) -> np.ndarray:
    """``(H, W, 3)`` uint8 RGB; grey, palette and CMYK pictures are converted, alpha is dropped.

    Raises:
        UserError: the file is missing, truncated, corrupt, or has more than eight bits per channel.
    """
    with _opened(path, "picture") as image:
        if image.mode in _COLOUR_MODES:
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))
        mode = image.mode
    raise UserError(
        f"the picture has mode {mode}, which has no one meaning as 8-bit colours",
        where=path,
        remedy="convert it to an 8-bit RGB or grey file",
    )


def read_index(path: Path, colours: Sequence[Sequence[int]] = ()) -> np.ndarray:
    """``(H, W)`` uint8 index values of a palette or grey PNG; the palette's colours play no role.

    Args:
        path: the file.
        colours: the data set's class colours; a colour picture made of them alone is called so.

    Grey PNGs of fewer than eight bits are refused: decoders stretch their values to 0..255, so
    that it cannot be told whether 255 meant 1, 3, 15 or void.

    Raises:
        UserError: the file is missing, truncated, corrupt, or not an index map.
    """
    with _opened(path, "mask") as image:
        fault = _not_an_index_map(image)
        if fault is None:
            return np.array(image)
        if _made_of(image, colours):
            fault += " in the colours of the classes"
    raise UserError(
        f"the mask is {fault}; an index map is needed (one class number for each pixel)",
        where=path,
        remedy="save it as an 8-bit palette or grey PNG whose values are class numbers",
    )


def _made_of(image: Image.Image, colours: Sequence[Sequence[int]]) -> bool:
    """Whether a colour picture has no other colours than those given, black and white and VOC's cream."""
    if not colours or image.mode not in ("RGB", "RGBA"):
        return False
    found = image.convert("RGB").getcolors(len(colours) + 3)
    known = {tuple(c) for c in colours} | {(0, 0, 0), (255, 255, 255), (224, 224, 192)}
    return found is not None and {colour for _, colour in found} <= known


def _not_an_index_map(image: Image.Image) -> str | None:
    """What stands against reading the pixels as class numbers; looks at the undecoded header."""
    if image.format != "PNG":
        return f"a {image.format} file"
    if image.mode == "P":
        return None
    if image.mode == "L":
        tiles = getattr(image, "tile", [])  # how the decoder will unpack the samples
        raw = tiles[0].args if tiles else "L"
        raw = raw[0] if isinstance(raw, tuple) else raw
        return None if raw == "L" else "a grey PNG of fewer than 8 bits"
    depth = {"1": "a black-and-white PNG", "RGB": "a colour PNG (RGB)", "RGBA": "a colour PNG (RGBA)"}
    sixteen = image.mode.startswith("I")
    return "a 16-bit PNG" if sixteen else depth.get(image.mode, f"a PNG of mode {image.mode}")


def palette_note(path: Path, colours: Sequence[Sequence[int]]) -> str:
    """What is odd about the colours of a palette PNG: ``another palette`` or nothing.

    Labels do not depend on it, but another palette may mean another order of classes.
    """
    try:
        with opened(path, _MOST_PICTURE) as stream, Image.open(stream) as image:
            stored = image.getpalette() if image.format == "PNG" and image.mode == "P" else None
    except (UserError, OSError, *_DECODE_ERRORS):
        return ""
    if stored is None:
        return ""
    expected = [v for colour in colours for v in colour]
    return (
        "" if stored[: len(expected)] == expected[: len(stored)] else "another palette than the official one"
    )


def write_index(path: Path, labels: np.ndarray) -> None:
    """Write ``(H, W)`` uint8 labels as a grey PNG, whole; equal labels give equal bytes."""
    image = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8))
    write_with(path, lambda stream: image.save(stream, format="PNG"))


def palette_image(labels: np.ndarray, palette: Sequence[Sequence[int]]) -> Image.Image:
    """``(H, W)`` uint8 labels as a palette picture; 255 is drawn in VOC's cream."""
    image = Image.fromarray(labels.astype(np.uint8), mode="P")
    colours = np.full((256, 3), 0, dtype=np.uint8)
    colours[: len(palette)] = palette
    colours[255] = (224, 224, 192)
    image.putpalette(colours.flatten().tolist())
    return image


def save_index(path: Path, labels: np.ndarray, palette: Sequence[Sequence[int]]) -> None:
    """Write ``(H, W)`` uint8 labels as a palette PNG; 255 is drawn in VOC's cream."""
    image = palette_image(labels, palette)
    write_with(path, lambda f: image.save(f, format="PNG"))
