"""Our feature networks inside torch-fidelity, so that its metrics can be computed with them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch_fidelity import register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

LAYERS = ("pooled", "spatial", "logits")


def register(name: str, network: nn.Module) -> None:
    """Make a feature network known to torch-fidelity: `calculate_metrics(feature_extractor=name, fid=True, ...)`.

    `isc` reads the logits by default, `fid`, `kid` and `prc` the pooled features. A process can register a name once.
    """

    class Extractor(FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **settings: Any) -> None:
            super().__init__(name, features_list)
            self.network = network

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return LAYERS

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "pooled"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            outputs = dict(zip(LAYERS, self.network(images), strict=True))
            return tuple(outputs[layer] for layer in self.features_list)

    register_feature_extractor(name, Extractor)
