"""A release file, and what it stands for: places, names, facts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vaeconv.autoencoder.families import ALIASES, BY_NAME, FAMILIES, Family
from vaeconv.autoencoder.scaling import ScalingOptions
from vaeconv.autoencoder.topology import Layout
from vaeconv.checkpoint.hub.address import parse_dataset
from vaeconv.checkpoint.hub.dataset import Dataset
from vaeconv.checkpoint.open import open_checkpoint
from vaeconv.checkpoint.source import hash_bytes
from vaeconv.evaluation.metric_networks import INCEPTION, LPIPS_HEADS, VGG
from vaeconv.evaluation.models import ModelSpec, read_models_file
from vaeconv.publish.card.meta import CardMeta
from vaeconv.publish.files import hash_file
from vaeconv.publish.modelspec import modelspec
from vaeconv.publish.places import hide_places
from vaeconv.publish.release.config import ReleaseConfig
from vaeconv.weights.detect import Survey, survey_checkpoint

EVAL, ASSETS = "eval.json", "assets"
_PASSING = ("timing", "seconds")


class Project:
    """A release, as its file describes it.

    Args:
        config: The file.
        root: The folder that paths in it are taken from.
    """

    def __init__(self, config: ReleaseConfig, root: Path) -> None:
        self.config = config
        self.root = root
        self.folder = self.path(config.output.folder)
        self.diffusers = self.folder / "diffusers"
        self.original = self.folder / "original"
        self._source_hashes: list[str] | None = None
        self._contents: dict[Path, Any] = {}
        self._survey: Survey | None = None

    # --- places ---

    def path(self, text: str) -> Path:
        """Resolve a path in the release file; an address stays as it is."""
        return Path(text) if "://" in text else self.root / text

    def place(self, text: str | None) -> str | None:
        """Resolve a path in the release file, as text."""
        return None if text is None else text if "://" in text else str(self.root / text)

    @property
    def source(self) -> str:
        """The training checkpoint."""
        return self.place(self.config.source.checkpoint) or ""

    @property
    def folders(self) -> list[Path]:
        """The folders that are published."""
        return [self.diffusers, *([self.original] if self.config.output.original else [])]

    @property
    def variants(self) -> list[tuple[str, str | None]]:
        """Each dtype of the diffusers folder with its variant; fp32, else the first, is plain."""
        dtypes = self.config.output.dtypes
        plain = "fp32" if "fp32" in dtypes else dtypes[0]
        return [(plain, None), *((dtype, dtype) for dtype in dtypes if dtype != plain)]

    @property
    def originals(self) -> list[Path]:
        """The CompVis files."""
        output = self.config.output
        if not output.original:
            return []
        return [
            self.original / f"{output.original}.{ending.lstrip('.').lower()}"
            for ending in output.original_formats
        ]

    def report_of(self, variant: str | None = None, original: Path | None = None) -> Path:
        """Return the path of the parity report of a variant, or of a CompVis file."""
        if original is not None:
            return self.original / f"parity-{original.name}.json"
        return self.diffusers / (f"parity-{variant}.json" if variant else "parity.json")

    # --- contents ---

    def source_sha256(self) -> list[str]:
        """Hashes of the training checkpoint's files, and of the config that lies beside them."""
        if self._source_hashes is None:
            self._source_hashes = _hash_checkpoint(self.source)
        return self._source_hashes

    def content(self, text: str | None) -> Any:
        """Hash a file, each file in a folder, or a model on the Hub; None for what is not here."""
        if text and "://" in text:
            return _hash_checkpoint(text)
        path = self.path(text) if text else None
        if path is None or not path.exists():
            return None
        if path not in self._contents:
            files = sorted(path.rglob("*")) if path.is_dir() else [path]
            self._contents[path] = [
                [file.relative_to(path).as_posix(), hash_file(file, file.name).sha256]
                for file in files
                if file.is_file()
            ]
        return self._contents[path]

    def images(self, text: str | None) -> Any:
        """Hash images that are here; of a dataset on the Hub tell the commit that is read."""
        location = parse_dataset(text or "")
        return Dataset(location).source if location else self.content(text)

    def survey(self) -> Survey:
        """Contents of the training checkpoint."""
        if self._survey is None:
            with open_checkpoint(self.source) as checkpoint:
                prefix = self.config.source.source_prefix
                self._survey = survey_checkpoint(checkpoint, prefix=prefix)
        return self._survey

    @property
    def layout(self) -> Layout:
        """Layout of the training checkpoint."""
        return self.survey().autoencoder.layout

    @property
    def takes_average(self) -> bool:
        """True if EMA weights are wanted and there are some."""
        return self.config.source.ema and bool(self.survey().ema.shadows)

    # --- facts ---

    @property
    def scaling(self) -> ScalingOptions:
        """Scaling options of the release file."""
        source = self.config.source
        return ScalingOptions(source.scaling_factor, source.shift_factor, source.family)

    @property
    def own_model(self) -> ModelSpec:
        """The released model, as a row of an evaluation."""
        name = self.config.card.model or self.config.card.title or "this model"
        return ModelSpec(path=str(self.diffusers), name=name)

    @property
    def other_models(self) -> Sequence[ModelSpec]:
        """Other models of the evaluation."""
        models = self.config.eval.models
        return read_models_file(self.path(models)) if models else ()

    @property
    def networks(self) -> dict[str, Path]:
        """Files with weights of metric networks that the release file names, by network."""
        table = self.config.eval
        given = {
            INCEPTION: table.inception_weights,
            VGG: table.vgg_weights,
            LPIPS_HEADS: table.lpips_weights,
        }
        return {net.name: self.path(file) for net, file in given.items() if file}

    @property
    def title(self) -> str:
        """Title of the model."""
        meta = self.meta
        return meta.title or meta.repo_id.rpartition("/")[2] or self.folder.resolve().name

    @property
    def meta(self) -> CardMeta:
        """The card's facts, with what other tables say."""
        config, meta = self.config, self.config.card
        original = self.originals[0].name if self.originals else ""
        return replace(
            meta,
            repo_id=meta.repo_id or config.push.repo_id,
            original_repo_id=meta.original_repo_id or config.push.original_repo_id,
            original_file=meta.original_file or original,
            model=meta.model or self.own_model.name,
            eval_titles=meta.eval_titles or ((config.eval.title,) if config.eval.title else ()),
        )

    def metadata(self, layout: Layout) -> dict[str, str]:
        """Entries for the header of safetensors files in a layout."""
        if not self.config.output.modelspec:
            return {}
        return modelspec(self.meta, self.title, self._family(), layout)

    def _family(self) -> Family | None:
        source = self.config.source
        if source.family:
            return BY_NAME.get(ALIASES.get(source.family, source.family))
        topology = self.survey().autoencoder.topology
        fitting = (
            family
            for family in FAMILIES
            if family.fits(topology) and family.scaling_factor == source.scaling_factor
        )
        return next(fitting, None)

    def publishable(self, command: str, document: dict[str, Any]) -> dict[str, Any]:
        """Leave out of a report what differs from run to run, and where on this machine things are.

        Args:
            command: Whose report it is.
            document: The report.
        """
        kept = {key: value for key, value in document.items() if key not in _PASSING}
        config = self.config
        given = (config.source.checkpoint, config.verify.drop_in_for, config.verify.latents)
        known = [place for place in map(self.place, given) if place]
        whole = {"schema_version": 1, "command": command, **kept}
        return dict(hide_places(whole, root=self.root, known=known))


def _hash_checkpoint(place: str) -> list[str]:
    """Hash a checkpoint's files, and the config that lies beside them."""
    with open_checkpoint(place) as checkpoint:
        hashes = [hash_bytes(one) for one in checkpoint.sources]
        if checkpoint.config:
            hashes.append(hashlib.sha256(checkpoint.config.text.encode()).hexdigest())
    return hashes
