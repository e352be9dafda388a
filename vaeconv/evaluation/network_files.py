"""Files with the weights of metric networks, as options and as keys of a release file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from vaeconv.common.option_docs import Doc
from vaeconv.evaluation.metric_networks import NETS
from vaeconv.weights.idle_options import Rule, refuse_idle

_METRICS = "Metrics"
INCEPTION_FILE = Doc("Weights of torch-fidelity's Inception v3, for rFID.", "FILE", _METRICS)
VGG_FILE = Doc("Weights of torchvision's VGG16, for PSIM and LPIPS.", "FILE", _METRICS)
LPIPS_FILE = Doc("Linear weights of LPIPS v0.1 for VGG.", "FILE", _METRICS)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFiles:
    """Files with the weights of metric networks; each option says which."""

    inception_weights: Annotated[Path | None, INCEPTION_FILE] = None
    vgg_weights: Annotated[Path | None, VGG_FILE] = None
    lpips_weights: Annotated[Path | None, LPIPS_FILE] = None

    def by_network(self, metrics: Sequence[str]) -> dict[str, Path]:
        """List the files that were named, by network.

        Raises:
            UsageError: No metric needs one.
        """
        given = (self.inception_weights, self.vgg_weights, self.lpips_weights)
        why = "no metric of --metrics uses them"
        refuse_idle(
            Rule(net.option, path is not None, not {*metrics}.isdisjoint(net.serves), why)
            for net, path in zip(NETS, given, strict=True)
        )
        return {net.name: path for net, path in zip(NETS, given, strict=True) if path is not None}
