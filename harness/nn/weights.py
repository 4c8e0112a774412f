"""Where a backbone's weights come from: one field, five kinds, one hash for the record.

``none``       random start
``packaged``   a file that ships with this project (:func:`packaged`)
a file         ``.safetensors``, or ``.pth``/``.pt``/``.bin`` read without executing anything
a package      ``package:NAME``: the weights file of an installed distribution (:mod:`harness.nn.package`)
a timm tag     such as ``gluon_in1k``, or ``timm`` for timm's default; the only kind that may download,
               and only when a network is built with it
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

import harness.basics.compat  # noqa: F401  (before timm)
from harness.basics.errors import UserError, nearest
from harness.basics.files import expanded, sha256_of
from harness.nn import package
from harness.nn.torch_files import read_torch

#: Folder of the packaged files.
PRETRAINED = Path(__file__).with_name("pretrained")


@cache
def packaged() -> dict[str, dict[str, Any]]:
    """Rows of ``pretrained/weights.json`` by backbone: ``file``, ``sha256``, and how it was made."""
    table = PRETRAINED / "weights.json"
    return json.loads(table.read_text(encoding="utf-8")) if table.is_file() else {}


def read_state_dict(path: Path | str) -> dict[str, Tensor]:
    """A flat state dict from a file, on the CPU.

    Bare dicts and the wrappers ``state_dict``, ``model`` and ``method`` are understood; a ``module.``
    prefix in front of every key (left by DistributedDataParallel) is removed.

    Raises:
        UserError: no such file, or no state dict in it that can be read without executing code.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            "weights file not found", where=path, remedy="check the path; see `weights` in the recipe"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = read_torch(path)
    except Exception as error:  # unpickling and header errors have no common base
        raise UserError(
            f"not a readable weights file: {_first_line(error)}",
            where=path,
            remedy="save a plain state dict with torch.save(network.state_dict(), path), or .safetensors",
        ) from error
    for wrapper in ("state_dict", "model", "method"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError("the file holds no state dict", where=path, remedy="save network.state_dict() alone")
    state = {str(k): v for k, v in content.items()}
    if state and all(k.startswith("module.") for k in state):
        state = {k.removeprefix("module."): v for k, v in state.items()}
    return state


def _first_line(error: Exception) -> str:
    text = error.problem if isinstance(error, UserError) else str(error)
    return text.splitlines()[0] if text else repr(error)


def weights_file(backbone: str, weights: str) -> Path | None:
    """The local file behind a backbone's ``weights``, fetched first if it is a timm tag; None for ``none``.

    Raises:
        UserError: unknown tag, missing or altered file, a package that is not installed or has no such file,
            or no network for a tag that is not cached.
    """
    if weights == "none":
        return None
    if weights == "packaged":
        return _packaged_file(backbone)
    if package.names_package(weights):
        return package.package_file(weights)
    if is_weights_file(weights):
        path = expanded(weights)
        if not path.is_file():
            raise UserError("weights file not found", where=path, remedy="check `weights` in the recipe")
        return path
    return _timm_file(backbone, weights)


def is_weights_file(weights: str) -> bool:
    """Whether ``weights`` is meant as a path (by its suffix or a slash)."""
    return weights.endswith(package.SUFFIXES) or "/" in weights or "\\" in weights


def is_tag(weights: str) -> bool:
    """Whether ``weights`` is meant as a timm tag."""
    return (
        weights not in ("none", "packaged")
        and not package.names_package(weights)
        and not is_weights_file(weights)
    )


def weights_sha256(backbone: str, weights: str) -> str | None:
    """SHA-256 of the file behind a backbone's ``weights``, None for a random start.

    Raises:
        UserError: as :func:`weights_file`.
    """
    path = weights_file(backbone, weights)
    return None if path is None else sha256_of(path)


def _packaged_file(backbone: str) -> Path:
    row = packaged().get(backbone)
    if row is None:
        raise UserError(
            f"no packaged weights for the backbone {backbone!r}",
            where="weights",
            remedy=f"{nearest(backbone, packaged())}; or set weights to a file, a timm tag or 'none'",
        )
    path = PRETRAINED / row["file"]
    if not path.is_file() or sha256_of(path) != row["sha256"]:
        raise UserError(
            "a packaged weights file is missing or altered", where=path, remedy="install the project again"
        )
    return path


def timm_name(backbone: str, tag: str) -> str:
    """The timm model name with its tag, ``resnet101s.gluon_in1k``.

    Raises:
        UserError: timm has no such model, or no such tag of it.
    """
    import timm

    architecture = backbone.partition(".")[0]
    if not timm.is_model(architecture):
        raise UserError(f"timm has no model {architecture!r}", where="backbone")
    names: list[str] = timm.list_pretrained(f"{architecture}.*")
    tags = [name.partition(".")[2] for name in names]
    if tag == "timm" and tags:
        default = timm.get_pretrained_cfg(architecture)
        tag = default.tag if default is not None and default.tag else tags[0]
    if tag not in tags:
        raise UserError(
            f"timm has no weights {tag!r} for {architecture!r}",
            where="weights",
            remedy=f"{nearest(tag, tags)}; or give a file, 'packaged' or 'none'",
        )
    return f"{architecture}.{tag}"


def _timm_file(backbone: str, tag: str) -> Path:
    """The cached file of a timm tag, downloaded if it is not there."""
    import timm

    name = timm_name(backbone, tag)
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise UserError(f"timm does not say where the weights {name!r} are", where="weights")
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(config.hf_hub_id, config.hf_hub_filename or "model.safetensors"))
    except Exception as error:  # offline, proxy and hub errors have no common base
        raise UserError(
            f"the weights of timm's {name!r} are not on this machine and could not be downloaded",
            where="weights",
            remedy=f"fetch model.safetensors of huggingface.co/{config.hf_hub_id} on a connected machine "
            "and set weights to that file, or copy its Hugging Face cache here; 'packaged' and 'none' "
            "need no network",
        ) from error
