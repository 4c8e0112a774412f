"""Plots within the page."""

from __future__ import annotations

import base64
import re

from leaderboards.write.markup import html_escape

#: What a kind of plot shows, for those who do not see it.
PLOT_WORDS = {
    "per-class": "IoU by class",
    "difference": "difference to the baseline by class",
    "overview": "mIoU of every method and seed by supervision",
    "seeds": "mIoU of every seed",
    "boundary": "mIoU against distance to object boundaries",
    "published": "published against reproduced mIoU",
    "annotation": "mIoU against annotation time",
    "cost": "mIoU against training time, memory and parameters",
    "curves": "losses over training",
    "qualitative": "predictions and their errors on the same pictures",
}


def kind_of(stem: str) -> str:
    """The kind of plot that a file's stem names, empty for none."""
    return next((kind for kind in PLOT_WORDS if stem.startswith(kind)), "")


def title_of(stem: str) -> str:
    """What a plot shows, of what."""
    kind = kind_of(stem)
    what = PLOT_WORDS.get(kind, "plot")
    where = stem.removeprefix(kind).strip("-").replace("-", " ")
    return f"{sentence(what)}: {where}"


def sentence(text: str) -> str:
    """A text as a title begins; what is written in its own way, such as mIoU, stays."""
    return text if text[1:2].isupper() else f"{text[:1].upper()}{text[1:]}"


def drawn(stem: str, data: bytes, first: bool = False) -> str:
    """A figure of the page: a picture, which the page's script makes part of it once it is looked at.

    A browser reads every picture that is in the page before it says that the page is there, far below as
    well (``loading="lazy"`` is for pictures that come over a network). So the script fetches this one from
    an attribute afterwards, unless it stands on the ``first`` screen, where it has no caption either.
    """
    text = html_escape(title_of(stem), quote=True)
    below = f"<figcaption>{text}</figcaption>" if not first else ""
    vector = not data.startswith(b"\x89PNG")
    source = f"data:image/{'svg+xml' if vector else 'png'};base64,{base64.b64encode(data).decode()}"
    name = f"{text}; the figures stand in the tables" if vector else text
    mark = f' data-plot="{html_escape(stem, quote=True)}"' if vector else ""
    size = _size(data)
    place = f'src="{_NOTHING}" data-src="{source}"' if size and not first else f'src="{source}"'
    image = f'<img {place} alt="{name}"{mark}{size} decoding="async">'
    return f"<figure{_widest(size) if vector and not first else ''}>{image}{below}</figure>"


def _widest(size: str) -> str:
    """So wide a figure may be that its letters are about those of the page."""
    found = re.search(r'width="(\d+)"', size)
    return f' style="max-width:{round(1.5 * int(found[1]))}px"' if found else ""


def _size(data: bytes) -> str:
    """Width and height of a picture as attributes, so that nothing moves when it is loaded."""
    if data.startswith(b"\x89PNG"):
        width, height = (int.from_bytes(data[k : k + 4], "big") for k in (16, 20))
    elif found := _OF_SVG.search(data[:2000]):
        width, height = (round(float(one)) for one in found.groups())
    else:
        return ""
    return f' width="{width}" height="{height}" style="aspect-ratio:{width}/{height}"'


#: A picture of one transparent pixel.
_NOTHING = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
_OF_SVG = re.compile(rb'<svg [^>]*\bviewBox="0 0 ([\d.]+) ([\d.]+)"')
