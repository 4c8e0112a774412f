"""One DeepLabV3+ network for AGMM and its baselines, so that only the losses differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from harness.engine.method import Build, Method
from harness.nn.checkpoints import KeyTable
from harness.nn.decoders import DeepLabV3Plus
from harness.nn.vit import by_rate


class DeepLabMethod(Method):
    """A method whose one network is DeepLabV3+ on the recipe's backbone."""

    def __init__(self, config: Any, build: Build) -> None:
        super().__init__(config, build)
        self.network = self.make_network()

    def make_network(self) -> Any:
        """The network: ``.backbone``, and a forward pass to :class:`harness.nn.decoders.Segmentation`."""
        build, config = self.build, self.config
        return DeepLabV3Plus(
            build.encoder(output_stride=config.output_stride, multi_grid=config.multi_grid),
            build.num_classes,
            width=config.head_width,
            low_width=config.low_width,
            rates=config.aspp_rates,
            dropout=config.dropout,
        )

    def predict(self, images: Tensor, network: str = "default") -> Tensor:
        """Logits ``(B, K, H, W)`` at the size of ``images`` ``(B, 3, H, W)``."""
        return self.network(images).logits

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The encoder with ``backbone_lr_scale``, and the head."""
        inside = {id(p) for p in self.network.backbone.parameters()}
        head = [p for p in self.network.parameters() if id(p) not in inside]
        return by_rate(self.network.backbone, head, self.config.backbone_lr_scale)

    @classmethod
    def key_tables(cls) -> dict[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]]:
        """``agmm-sass``: state dicts saved by the AGMM-SASS code (``model.module.state_dict()``)."""
        return {"agmm-sass": KeyTable(((r"((backbone|head|reduce|fuse|classifier)\..+)", r"network.\1"),))}
