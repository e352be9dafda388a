"""A release file, and what it stands for: places, names, facts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vaeconv.autoencoder.families import ALIASES, BY_NAME, Family, fitting_families
from vaeconv.autoencoder.scaling import ScalingOptions
from vaeconv.autoencoder.topology import Layout
from vaeconv.checkpoint.hub.address import parse_dataset
from vaeconv.checkpoint.hub.dataset import Dataset
from vaeconv.checkpoint.open import open_checkpoint
from vaeconv.checkpoint.source import hash_bytes
from vaeconv.evaluation.models import ModelSpec, read_models_file
from vaeconv.publish.card.meta import CardMeta
from vaeconv.publish.card.training_facts import training_facts
from vaeconv.publish.files import hash_file
from vaeconv.publish.modelspec import modelspec
from vaeconv.publish.places import hide_places
from vaeconv.publish.release.config import ReleaseConfig
from vaeconv.weights.detect import Detected, detect

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
        self.folder = Path(self.place(config.output.folder))
        self.diffusers = self.folder / "diffusers"
        self.original = self.folder / "original"
        self._contents: dict[Path, Any] = {}

    # --- places ---

    def place(self, text: str) -> str:
        """Resolve a path in the release file; an address stays as it is."""
        return text if "://" in text else str(self.root / text)

    def path(self, text: str | None) -> Path | None:
        """Resolve a path in the release file; None where it has none."""
        return Path(self.place(text)) if text else None

    @property
    def source(self) -> str:
        """The training checkpoint."""
        return self.place(self.config.source.checkpoint)

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
        names = [f"{output.original}.{one.lstrip('.').lower()}" for one in output.original_formats]
        return [self.original / name for name in names] if output.original else []

    @property
    def proofs(self) -> list[tuple[Path, str | None, Path]]:
        """The folder's variants and the CompVis files, each with the path of its parity report."""
        names = {variant: f"parity-{variant}.json" for _, variant in self.variants}
        names[None] = "parity.json"
        return [
            *((self.diffusers, variant, self.diffusers / name) for variant, name in names.items()),
            *((one, None, self.original / f"parity-{one.name}.json") for one in self.originals),
        ]

    # --- contents ---

    @cached_property
    def source_sha256(self) -> list[str]:
        """Hashes of the training checkpoint's files, and of the config that lies beside them."""
        return _hash_checkpoint(self.source)

    def content(self, text: str | None) -> Any:
        """Hash a file, each file in a folder, or a model on the Hub; None for what is not here."""
        if text and "://" in text:
            return _hash_checkpoint(text)
        path = self.path(text)
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

    def images(self, text: str) -> Any:
        """Hash images that are here; of a dataset on the Hub tell the commit that is read."""
        location = parse_dataset(text)
        return Dataset(location).source if location else self.content(text)

    @cached_property
    def detected(self) -> Detected:
        """Contents of the training checkpoint."""
        with open_checkpoint(self.source) as checkpoint:
            return detect(checkpoint, prefix=self.config.source.source_prefix)

    @property
    def takes_ema(self) -> bool:
        """True if EMA weights are wanted and there are some."""
        return self.config.source.ema and bool(self.detected.ema.shadows)

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

    @cached_property
    def other_models(self) -> Sequence[ModelSpec]:
        """Other models of the evaluation."""
        models = self.path(self.config.eval.models)
        return read_models_file(models) if models else ()

    @property
    def networks(self) -> dict[str, Path]:
        """Files with weights of metric networks that the release file names, by network."""
        named = {network.name: self.path(file) for _, network, file in self.config.eval.networks()}
        return {name: path for name, path in named.items() if path}

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

    @property
    def card_meta(self) -> CardMeta:
        """The card's facts, with those of the run that the training checkpoint is of."""
        with open_checkpoint(self.source) as checkpoint:
            found = training_facts(checkpoint.run_facts, ema=self.takes_ema)
        return replace(self.meta, facts={**found, **self.meta.facts})

    def metadata(self, layout: Layout) -> dict[str, str]:
        """Entries for the header of safetensors files in a layout."""
        if not self.config.output.modelspec:
            return {}
        return modelspec(self.meta, self.title, self._family(), layout)

    def _family(self) -> Family | None:
        source = self.config.source
        if source.family:
            return BY_NAME[ALIASES.get(source.family, source.family)]
        fitting = fitting_families(self.detected.autoencoder.topology)
        return next((one for one in fitting if one.scaling_factor == source.scaling_factor), None)

    def publishable(self, command: str, document: dict[str, Any]) -> dict[str, Any]:
        """Leave out of a report what differs from run to run, and where on this machine things are.

        Args:
            command: Whose report it is.
            document: The report.
        """
        kept = {key: value for key, value in document.items() if key not in _PASSING}
        config = self.config
        given = (config.source.checkpoint, config.verify.drop_in_for, config.verify.latents)
        known = [self.place(one) for one in given if one]
        whole = {"schema_version": 1, "command": command, **kept}
        return dict(hide_places(whole, root=self.root, known=known))


def _hash_checkpoint(place: str) -> list[str]:
    """Hash a checkpoint's files, and the config that lies beside them."""
    with open_checkpoint(place) as checkpoint:
        hashes = [hash_bytes(one) for one in checkpoint.sources]
        if checkpoint.config:
            hashes.append(hashlib.sha256(checkpoint.config.text.encode()).hexdigest())
    return hashes
