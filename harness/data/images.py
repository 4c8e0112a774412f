"""Decoding: pictures as RGB, masks and labels as index values, each whole or not at all.

Pixels are taken in the order in which the file stores them. EXIF orientation is ignored, for
pictures and masks alike: the masks of VOC, COCO, Cityscapes and ADE20K are drawn on the stored
pixels, and a picture that is turned on reading no longer lies under its mask. A user's own data set
can ask for it, where labels were drawn on pictures as viewers show them.
"""

from __future__ import annotations

import errno
import glob
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from harness.basics.errors import UserError
from harness.basics.files import write_with
from harness.basics.reading import opened

#: Whether a picture is turned as its EXIF orientation says.
Exif = Literal["ignore", "apply"]

#: Modes that have one meaning as eight-bit colours. 16-bit and floating-point pictures have none.
_COLOUR_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})
#: Formats that are tried, whatever a file is called: for PostScript, Pillow would start Ghostscript.
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
_DECODE_ERRORS = (SyntaxError, ValueError, EOFError, zlib.error, Image.DecompressionBombError)


#: Largest file of a picture.
_MOST_PICTURE = 1 << 30


@contextmanager
def _opened(path: Path, what: str) -> Iterator[Image.Image]:
    """An open picture; whatever goes wrong while it is open becomes a UserError that names it."""
    try:
        with opened(path, _MOST_PICTURE) as stream, Image.open(stream, formats=_FORMATS) as image:
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


def opened_mask(path: Path) -> AbstractContextManager[Image.Image]:
    """A mask, open and not yet decoded; UserErrors name it, as those of :func:`read_index`."""
    return _opened(path, "mask")


def _corrupt(path: Path, what: str, error: Exception) -> UserError:
    return UserError(f"the {what} is corrupt: {error}", where=path, remedy="copy or unpack the file again")


def image_size(path: Path, exif: Exif = "ignore") -> tuple[int, int]:
    """``(H, W)`` from the file's header, without decoding it.

    Args:
        path: the file.
        exif: as in :func:`read_rgb`.

    Raises:
        UserError: the file is missing or no picture.
    """
    with _opened(path, "picture") as image:
        width, height = _stored_size(image)
        return (width, height) if exif == "apply" and _orientation(image) >= 5 else (height, width)


def read_rgb(path: Path, exif: Exif = "ignore") -> np.ndarray:
    """``(H, W, 3)`` uint8 RGB; grey, palette and CMYK pictures are converted, alpha is dropped.

    Args:
        path: the file.
        exif: whether the picture is turned and mirrored as its EXIF orientation says.

    Raises:
        UserError: the file is missing, truncated, corrupt, or has more than eight bits per channel.
    """
    with _opened(path, "picture") as image:
        return rgb_of(image, exif, path)


def rgb_of(image: Image.Image, exif: Exif = "ignore", where: Path | str = "picture") -> np.ndarray:
    """An opened picture as :func:`read_rgb` reads its file.

    Raises:
        UserError: it has more than eight bits per channel.
    """
    deep = is_deep(image)
    if image.mode in _COLOUR_MODES and not deep:
        rgb = _oriented(image, exif)
        return np.array(rgb if rgb.mode == "RGB" else rgb.convert("RGB"))
    mode = f"{image.mode} with 16 bits for each channel" if deep else image.mode
    raise UserError(
        f"the picture has mode {mode}, which has no one meaning as 8-bit colours",
        where=where,
        remedy="convert it to an 8-bit RGB or grey file",
    )


def picture_notes(path: Path, exif: Exif = "ignore") -> tuple[str, ...]:
    """What of a picture is not read, in words that follow 'pictures with', such as ``transparency, ...``.

    Raises:
        UserError: as :func:`read_rgb`.
    """
    notes = []
    with _opened(path, "picture") as image:
        if _orientation(image) > 1:
            notes.append(f"an EXIF orientation, which is {'applied' if exif == 'apply' else 'ignored'}")
        # phones store previews and depth beside a JPEG ("MPO"); nobody takes those for pages
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
            notes.append("several pages or frames, of which the first is read")
            image.seek(0)
        alpha = "transparency" in image.info or "A" in image.getbands()
        if (
            _bands(image)
            > (4 if image.mode == "CMYK" else 1 if image.mode in ("1", "L", "LA", "P") else 3) + alpha
        ):
            notes.append("more bands than colours, of which the first are read")
        if alpha and np.array(image.convert("RGBA").getchannel("A")).min() < 255:
            notes.append("transparency, which is dropped")
    return tuple(notes)


#: EXIF's tag of orientation, and what turns stored pixels as its values say.
_ORIENTATION = 274
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: TIFF's tags of width, height, bits of each sample, samples of each pixel.
_WIDTH, _HEIGHT, _BITS, _SAMPLES = 256, 257, 258, 277


def _tiff(image: Image.Image) -> Mapping[int, Any]:
    return getattr(image, "tag_v2", {})


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 where there is none or one that means nothing."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except (*_DECODE_ERRORS, struct.error, OSError, KeyError, TypeError, AttributeError):
        return 1  # EXIF that nobody can read turns nothing
    return found if isinstance(found, int) and found in _TURNS else 1


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of the stored pixels; Pillow gives those of a TIFF as it would be turned."""
    tags = _tiff(image)
    return (int(tags[_WIDTH]), int(tags[_HEIGHT])) if _WIDTH in tags and _HEIGHT in tags else image.size


def _oriented(image: Image.Image, exif: Exif) -> Image.Image:
    """The decoded picture as stored, or turned as its EXIF orientation says."""
    orientation, tiff = _orientation(image), _ORIENTATION in _tiff(image)
    image.load()
    if orientation == 1:
        return image
    turned = tiff and _ORIENTATION not in image.getexif()  # Pillow turns TIFFs itself, and says so
    if turned == (exif == "apply"):
        return image
    back = {6: 8, 8: 6}.get(orientation, orientation)
    return image.transpose(_TURNS[back if turned else orientation])


def is_deep(image: Image.Image) -> bool:
    """Whether channels have more than eight bits, which decoders cut off for colours without a word."""
    bits = _tiff(image).get(_BITS, 8)
    raw = " ".join(str(tile[3]) for tile in getattr(image, "tile", []))
    return ";16" in raw or max(bits if isinstance(bits, tuple) else (bits,)) > 8


def _bands(image: Image.Image) -> int:
    return int(_tiff(image).get(_SAMPLES, len(image.getbands())))


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
        remedy="save it as an 8-bit palette or grey PNG whose values are class numbers, or say what its "
        "colours or values mean: values = ... in the dataset.toml of your own data set",
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
        with opened(path, _MOST_PICTURE) as stream, Image.open(stream, formats=_FORMATS) as image:
            stored = image.getpalette() if image.format == "PNG" and image.mode == "P" else None
    except (UserError, OSError, *_DECODE_ERRORS):
        return ""
    if stored is None:
        return ""
    expected = [v for colour in colours for v in colour]
    return (
        "" if stored[: len(expected)] == expected[: len(stored)] else "another palette than the official one"
    )


def write_index(path: Path, labels: np.ndarray, *, durable: bool = True) -> None:
    """Write ``(H, W)`` uint8 labels as a grey PNG, whole; equal labels give equal bytes."""
    image = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8))
    write_with(path, lambda stream: image.save(stream, format="PNG"), durable=durable)


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
