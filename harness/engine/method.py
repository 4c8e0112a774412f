"""The one interface of all methods, and what the harness hands them to build their networks from."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from harness.basics.errors import UserError
from harness.basics.registry import METHODS, refresh
from harness.data.base import SUPERVISIONS, Supervision
from harness.engine.batch import Batch, Progress
from harness.engine.build import Build, FurtherSpec, ViewSpec
from harness.recipes.declared import Declaration, NoConfig, Paper

if TYPE_CHECKING:
    import numpy as np
    from optuna.distributions import BaseDistribution
    from torch.optim import Optimizer

    from harness.engine.sampling import Pool
    from harness.recipes.specs import OptimiserSpec

__all__ = ["Build", "FurtherSpec", "Method", "NoConfig", "Paper", "ViewSpec"]


def register_method(cls: type[Method]) -> type[Method]:
    """Register a method in this process, as a decorator or a call: for notebooks and scripts.

    Workers on Ray get it with their work, and records hold its source. Packages use an entry point.

    Raises:
        UserError: a package brings a method of that name, or the class is no method.
    """
    name = getattr(cls, "name", None)
    if isinstance(name, str) and METHODS.entry(name) is not None:
        raise UserError(
            f"there is a method {name!r} already",
            where=f"{cls.__module__}.{cls.__qualname__}",
            remedy="give the class another name",
        )
    METHODS.register(str(name), cls)
    try:
        METHODS.get(str(name))
    except UserError:
        METHODS.forget(str(name))
        raise
    refresh()
    return cls


class Lazy(Mapping[str, Tensor]):
    """Tensors by name, each computed when it is asked for, without gradient.

    Args:
        makers: name to a function without arguments.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._makers = dict(makers)

    def __getitem__(self, name: str) -> Tensor:
        with torch.no_grad():
            return self._makers[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._makers  # a mapping's own way is to make it and see

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def _names(value: object) -> bool:
    """Whether a value is a list of names, each once."""
    whole = isinstance(value, tuple | list) and value and all(isinstance(n, str) and n for n in value)
    return bool(whole) and len(set(value)) == len(value)  # type: ignore[arg-type, call-overload]


class Method(nn.Module, ABC):
    """A method: networks, the loss that trains them, and prediction. Everything else is the harness's.

    ``__init__`` takes the configuration and a :class:`Build`. The engine calls the module itself
    (``forward`` is ``loss``), so that hooks of distributed wrappers fire.
    """

    #: Registry name.
    name: ClassVar[str]
    #: Name in tables and plots.
    title: ClassVar[str]
    #: The paper, None for a baseline.
    paper: ClassVar[Paper | None] = None
    #: Kinds of weak label it accepts, checked before a run starts.
    supervision: ClassVar[frozenset[Supervision]]
    #: Kinds that it trains on only through ``labels_from``, dense pseudo labels.
    needs_labels_from: ClassVar[frozenset[Supervision]] = frozenset()
    #: Hyper-parameters: a :func:`harness.basics.schema.schema` class.
    Config: ClassVar[type] = NoConfig
    #: The recipe whose ``[config]`` equals the defaults of ``Config``.
    reference_recipe: ClassVar[str] = ""
    #: Names that ``predict(network=...)`` accepts.
    networks: ClassVar[tuple[str, ...]] = ("default",)
    #: Fractions of training at which the contract tests probe the loss (one for each phase).
    probe_steps: ClassVar[tuple[float, ...]] = (0.0,)

    def __init_subclass__(cls, declared: Declaration | None = None, **kwargs: Any) -> None:
        """Take over what a module without torch declares of the method."""
        super().__init_subclass__(**kwargs)
        if declared is not None:
            for field in dataclasses.fields(declared):
                setattr(cls, field.name, getattr(declared, field.name))

    @classmethod
    def misdeclared(cls) -> str:
        """What is wrong with the values of the class, in words that follow "is"; empty if nothing."""
        for key in ("supervision", "needs_labels_from"):
            kinds = getattr(cls, key)
            whole = isinstance(kinds, Collection) and not isinstance(kinds, str)
            if not whole or not set(kinds) <= set(SUPERVISIONS) or not (kinds or key != "supervision"):
                return f"declared with {key} {kinds!r}, not a set of {', '.join(SUPERVISIONS)}"
        for key in ("name", "title", "reference_recipe"):
            if not isinstance(getattr(cls, key), str):
                return f"declared with a {key} that is no text: {getattr(cls, key)!r}"
        if not _names(cls.networks):
            return f"declared with networks {cls.networks!r}, not a tuple of distinct names"
        probes = cls.probe_steps if isinstance(cls.probe_steps, tuple | list) else (None,)
        if not all(isinstance(p, int | float) and 0 <= p <= 1 for p in probes):
            return f"declared with probe_steps {cls.probe_steps!r}, not fractions of training"
        if cls.paper is not None and not isinstance(cls.paper, Paper):
            return f"declared with a paper that is no wsss.Paper: {cls.paper!r}"
        if not dataclasses.is_dataclass(cls.Config):
            return "declared with a Config that is no class under harness.basics.schema.schema"
        return ""

    def __init__(self, config: Any, build: Build) -> None:
        super().__init__()
        self.config = config
        self.build = build

    @abstractmethod
    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Named, already weighted scalar terms of one group's batch; the engine sums and logs them."""

    @abstractmethod
    def predict(self, images: Tensor, network: str = "default") -> Tensor:
        """Logits ``(B, K, H, W)`` at the size of ``images`` ``(B, 3, H, W)``."""

    def grid_logits(self, images: Tensor, network: str = "default") -> Tensor:
        """Logits ``(B, K, h, w)`` before the last bilinear resize, for protocols that resize once to the
        size of the masks, whatever the scale; by default those of :meth:`predict`."""
        return self.predict(images, network)

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Same as :meth:`loss`."""
        return self.loss(batch, progress)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups: ``params``, and optionally ``lr_scale`` (1.0) and ``weight_decay``."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def make_optimiser(self, groups: list[dict[str, Any]], spec: OptimiserSpec) -> Optimizer | None:
        """An optimiser of the method's own; None for the recipe's (sgd, adam, adamw).

        Args:
            groups: :meth:`parameter_groups`, each with ``params``, ``lr``, ``lr_scale`` and ``weight_decay``.
                Hand them on as they are: the schedule sets ``lr`` of each before every step.
            spec: the recipe's ``[optimiser]``.

        Returns:
            An optimiser over these groups. Checkpoints hold its ``state_dict``.
        """
        return None

    def note(self, name: str, value: Tensor | float) -> None:
        """Log a number that is no loss term, from :meth:`loss` or :meth:`after_step`.

        The mean over the steps since the last row that noted it stands in the history as ``note.NAME``, and
        in trackers; a row without any leaves it out. Of several processes, the first one's counts.

        Args:
            name: letters, digits, ``_``, ``-`` and ``.``.
            value: one number; a tensor is not waited for until the row is written.
        """
        self.__dict__.setdefault("_noted", []).append((name, value))

    def show(self, name: str, picture: Tensor | Callable[[], Tensor]) -> None:
        """Log a picture, from :meth:`loss` or :meth:`after_step`; it changes no number.

        A run keeps those of twelve steps spread over it, the first of each name, at most eight a step, in
        ``pictures/`` of its folder and in trackers. At other steps this does nothing: hand over a function
        where a picture takes time to make. Of several groups and processes, the first one's are kept.

        Args:
            name: letters, digits, ``_``, ``-`` and ``.``.
            picture: ``(3, H, W)`` colours or ``(H, W)`` grey in ``[0, 1]``, uint8 or bool; ``(H, W)`` int64
                labels, shown in the data set's colours; or a function that makes one.
        """
        if self.__dict__.get("_showing"):
            self.__dict__.setdefault("_shown", []).append((name, picture))

    def showing(self, due: bool) -> None:
        """Whether pictures are wanted from now on; for the engine."""
        self.__dict__["_showing"] = due

    def take_pictures(self) -> list[tuple[str, Tensor | Callable[[], Tensor]]]:
        """What was shown since the last call."""
        return self.__dict__.pop("_shown", [])

    def take_notes(self) -> list[tuple[str, Tensor | float]]:
        """What was noted since the last call."""
        return self.__dict__.pop("_noted", [])

    def after_step(self, progress: Progress) -> None:
        """Called after every optimiser step: EMA teachers, prototype banks."""

    def views(self) -> Mapping[str, ViewSpec]:
        """Further views that a batch must carry, by name."""
        return {}

    def further(self) -> Mapping[str, FurtherSpec]:
        """Further pictures that every batch must carry without their labels, by name (``batch.further``)."""
        return {}

    def order(self, pool: Pool, epoch: int, rng: np.random.Generator) -> Sequence[int] | np.ndarray:
        """In which order the pictures of the training split are drawn in one pass over them.

        It may follow from these arguments and the configuration alone, never from what training moves: it is
        asked anew wherever a run goes on, and by every process.

        Args:
            pool: ids and tags of the pictures.
            epoch: passes before this one.
            rng: for everything random.

        Returns:
            ``len(pool)`` indices; some may be repeated and others left out.
        """
        return rng.permutation(len(pool))

    @classmethod
    def orders(cls) -> bool:
        """Whether the method has an order of its own."""
        return cls.order is not Method.order

    @torch.no_grad()
    def pseudo_labels(self, images: Tensor, tags: Tensor) -> Mapping[str, Tensor]:
        """Pseudo labels ``(B, H, W)`` int64 (255 uncertain) by name, from unaugmented images and tags.

        Return a :class:`Lazy` mapping where one name costs much that another does not need.
        """
        return {}

    def class_maps(self, images: Tensor, tags: Tensor) -> Tensor | None:
        """Activation maps ``(B, K, H, W)`` in ``[0, 1]`` at the size of ``images``, 0 for background and for
        classes without tag; None where a method makes none. For ``wsss export``."""
        return None

    @classmethod
    def search_space(cls) -> dict[str, BaseDistribution]:
        """Static search space over fields of ``Config`` and of the optimiser (``optimiser.lr``)."""
        return {}

    @classmethod
    def key_tables(cls) -> dict[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]]:
        """Key tables of checkpoints that other code saved, by name of that code."""
        return {}
