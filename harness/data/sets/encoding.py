"""What the values or colours of a user's own masks and label PNGs mean: one table for both.

A table maps values (0 to 255) or colours (R, G, B) to classes, to void, and to 'not annotated'. Grey PNGs
of fewer than eight bits hold their own small values: a table that has 255 for a class means by it what
viewers show, the largest value that fits. With ``unlabelled = "photograph"`` labels were drawn in the
classes' colours on the picture itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from harness.basics.bounds import Byte
from harness.basics.errors import UserError, nearest
from harness.basics.reading import read_text
from harness.data.base import IGNORE, UNLABELLED
from harness.data.images import is_deep, opened_mask

Colour = tuple[Byte, Byte, Byte]
#: A value or a colour in a file. Lists of three numbers are colours.
Code = Annotated[Byte | Colour, Field(union_mode="left_to_right")]
#: Not annotated: wherever a label drawn on the photograph is not in a class's colour.
PHOTOGRAPH = "photograph"
Unlabelled = Byte | Colour | Literal["photograph"]


@dataclass(frozen=True)
class Encoding:
    """A table of codes.

    Attributes:
        labels: label of every code: ``0..K-1``, 255 for void, 254 for not annotated. Codes are all
            values, or all colours.
        classes: class names.
        photograph: every colour that is no code is not annotated.
        where: the file that says so.
    """

    labels: Mapping[int | Colour, int]
    classes: tuple[str, ...]
    photograph: bool
    where: Path

    @property
    def colours(self) -> bool:
        """Whether codes are colours."""
        return any(isinstance(code, tuple) for code in self.labels)

    def read(self, path: Path, picture: np.ndarray | None = None) -> np.ndarray:
        """Labels of a file: ``(H, W)`` uint8, ``0..K-1``, 254 and 255.

        Args:
            path: a PNG of any kind that holds codes, or a BMP of colours.
            picture: ``(H, W, 3)`` uint8, where labels were drawn on it.

        Raises:
            UserError: missing, corrupt, of another format, or a code that the table does not have.
        """
        codes, known = self._codes(path)
        table = np.full(len(known) + 1, -1, np.int16)  # the last is that of all other codes
        table[:-1] = [label for _, label in known]
        places = np.searchsorted(keys := np.array([key for key, _ in known]), codes).clip(max=len(known) - 1)
        places = np.where(keys[places] == codes, places, len(known))
        label = table[places]
        if self.photograph:
            if picture is not None and picture.shape[:2] == codes.shape:
                label[_packed(picture) == codes] = -1  # the photograph's own red is no scribble
            label[label < 0] = UNLABELLED
        if (label < 0).any():
            self._refuse(path, codes[label < 0])
        return label.astype(np.uint8)

    def _codes(self, path: Path) -> tuple[np.ndarray, list[tuple[int, int]]]:
        """One number for each pixel, and numbers with labels in rising order."""
        with opened_mask(path) as image:
            if image.format != "PNG" and not (self.colours and image.format == "BMP"):
                raise UserError(
                    f"the mask is a {image.format} file",
                    where=path,
                    remedy="save it as PNG, which keeps every value",
                )
            if is_deep(image) or image.mode[0] in "IF":
                raise UserError("the mask has 16 bits", where=path, remedy="save it with 8 bits")
            if not self.colours and image.mode in ("1", "L", "P"):
                return self._values(image)
            alpha = _alpha(image)
            rgb = np.array(image.convert("RGB"))
        if not self.colours:
            if (rgb != rgb[..., :1]).any():
                raise UserError(
                    f"the mask has colours, and {self.where.name} says what values mean",
                    where=path,
                    remedy=f"give the colours of the classes in {self.where}: values = {{NAME = [R, G, B]}}",
                )
            codes = rgb[..., 0].astype(np.int64)  # grey, saved as colours
        else:
            codes = _packed(rgb)
        known = {_number(code): label for code, label in self.labels.items()}
        if alpha is not None and (alpha == 0).any():
            if UNLABELLED not in known.values() and not self.photograph:
                raise UserError(
                    "the file has transparent pixels, and it is not said what they mean",
                    where=path,
                    remedy=f"say in {self.where} what is unlabelled: they count as it",
                )
            codes = np.where(alpha == 0, -1, codes)
            known[-1] = UNLABELLED
        return codes, sorted(known.items())

    def _values(self, image: Image.Image) -> tuple[np.ndarray, list[tuple[int, int]]]:
        """:meth:`_codes` of a table of values."""
        raw = next((tile[3] for tile in getattr(image, "tile", [])), "")
        bits = {"1": 1, "L;1": 1, "L;2": 2, "L;4": 4}.get(str(raw[0] if isinstance(raw, tuple) else raw), 8)
        values = np.array(image).astype(np.int64)
        largest = 2**bits - 1
        if bits < 8 and image.mode != "P":  # Pillow stretches grey samples to 0..255, and 1 bit to truth
            values = values * largest if image.mode == "1" else values * largest // 255
        known = {int(code): label for code, label in self.labels.items() if isinstance(code, int)}
        if bits < 8 and image.mode != "P" and max(known, key=lambda v: (known[v] < UNLABELLED, v)) > largest:
            values = values * 255 // largest
        return values, sorted(known.items())

    def _refuse(self, path: Path, codes: np.ndarray) -> None:
        strange, counts = np.unique(codes, return_counts=True)
        most = int(strange[counts.argmax()])
        shown = [most >> 16, most >> 8 & 255, most & 255] if self.colours else most
        thing = "colour" if self.colours else "value"
        more = f" and {len(strange) - 1} more {thing}s" if len(strange) > 1 else ""
        raise UserError(
            f"the mask holds the {thing} {shown}{more} on {len(codes):,} pixels; legal are {self.words()}",
            where=path,
            remedy=f"name it in {self.where} (a class, void or unlabelled), or mend the file: smoothed edges "
            "and lossy copies make colours that nobody drew",
        )

    def words(self) -> str:
        """The codes and what they mean."""
        return ", ".join(f"{_shown(code)} {self._meaning(label)}" for code, label in self.labels.items())

    def _meaning(self, label: int) -> str:
        return {IGNORE: "(void)", UNLABELLED: "(unlabelled)"}.get(label) or self.classes[label]


def _shown(code: int | Colour) -> str:
    return str(list(code) if isinstance(code, tuple) else code)


def _number(code: int | Colour) -> int:
    return code if isinstance(code, int) else code[0] << 16 | code[1] << 8 | code[2]


def _packed(rgb: np.ndarray) -> np.ndarray:
    """``(H, W)`` int64 numbers of ``(H, W, 3)`` uint8 colours."""
    return rgb.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])


def _alpha(image: Image.Image) -> np.ndarray | None:
    if "transparency" in image.info or "A" in image.getbands():
        return np.array(image.convert("RGBA").getchannel("A"))
    return None


def encoding(
    classes: Sequence[str],
    values: Mapping[str, int | Colour],
    void: Sequence[int | Colour],
    unlabelled: Any,
    where: Path,
) -> Encoding:
    """A table, checked.

    Args:
        classes: class names in label order.
        values: code of every class.
        void: codes that are no class and are not scored.
        unlabelled: the code of pixels that nobody annotated, or ``photograph``; None where there is none.
        where: the file that says so.

    Raises:
        UserError: a class without code or an unknown one, a code that means two things, values among
            colours.
    """
    problem = ""
    strange = [name for name in values if name not in classes]
    lacking = [name for name in classes if name not in values]
    if strange:
        raise UserError(
            f"values: {strange[0]!r} is none of the classes", where=where, remedy=nearest(strange[0], classes)
        )
    if lacking:
        problem = f"values: nothing is said of the class {lacking[0]!r}"
    labels: dict[int | Colour, int] = {}
    parts = [(values[name], k) for k, name in enumerate(classes) if name in values]
    parts += [(code, IGNORE) for code in void]
    if unlabelled is not None and unlabelled != PHOTOGRAPH:
        parts = [part for part in parts if part != (unlabelled, IGNORE)]  # neither says a class
        parts.append((unlabelled, UNLABELLED))
    for code, label in parts:
        if labels.get(code, label) != label:
            said = {IGNORE: "void", UNLABELLED: "unlabelled"}.get(label, "that of a class")
            problem = problem or f"{_shown(code)} is {said}, and also that of a class"
        labels[code] = label
    if len({type(code) for code in labels}) > 1:
        problem = problem or "values, void and unlabelled: some are values and some are colours"
    if unlabelled == PHOTOGRAPH and not all(isinstance(code, tuple) for code in labels):
        problem = problem or 'unlabelled = "photograph" needs the colours of the classes'
    if problem:
        raise UserError(problem, where=where, remedy="see docs/data.md, 'Values and colours'")
    return Encoding(labels, tuple(classes), unlabelled == PHOTOGRAPH, where)


def read_labelmap(path: Path) -> dict[str, Colour]:
    """Colours by name of CVAT's ``labelmap.txt``: lines of ``name:R,G,B:parts:actions``.

    Raises:
        UserError: missing, or a line of another form.
    """
    found: dict[str, Colour] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        words = rest.partition(":")[0].split(",")
        if len(words) != 3 or not all(w.strip().isdecimal() and int(w) <= 255 for w in words):
            raise UserError(
                "a line of a label map is name:R,G,B:parts:actions",
                where=f"{path}, line {number}",
                remedy="export it from CVAT again, or give colours under [values]",
            )
        red, green, blue = map(int, words)
        found[name.strip()] = (red, green, blue)
    if not found:
        raise UserError("the label map names no class", where=path, remedy="export it from CVAT again")
    return found
