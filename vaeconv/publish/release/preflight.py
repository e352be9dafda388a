"""Check all that a release needs before it begins, and list everything that is missing."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from vaeconv.checkpoint.open import open_checkpoint
from vaeconv.common.wording import human_size, plural
from vaeconv.errors import (
    InputError,
    MissingDependencyError,
    OutputError,
    UsageError,
    VaeconvError,
)
from vaeconv.evaluation.image_set import ImageSet
from vaeconv.evaluation.metric_networks import NETS, MissingWeightsError, Net, check_weights
from vaeconv.evaluation.models import ModelSpec, name_models
from vaeconv.evaluation.protocol import PRESETS
from vaeconv.models.devices import pick_device
from vaeconv.parity.references import load_set
from vaeconv.publish.card.card import CARD, CardInputs, make_card
from vaeconv.publish.card.check import check_card
from vaeconv.publish.hub.access import Destination, look_at
from vaeconv.publish.hub.push_options import PushOptions
from vaeconv.publish.hub.session import Deadline
from vaeconv.publish.release.check import attempt
from vaeconv.publish.release.config import CompareTable, EvalTable
from vaeconv.publish.release.gates import read_rfid
from vaeconv.publish.release.project import Project
from vaeconv.publish.release.weights import plan_bytes
from vaeconv.publish.signing import check_key
from vaeconv.weights.detect import survey_checkpoint

_LOOKED_AT = 8  # images of a set; if none of them can be read, the set is not one
_PATIENCE = 120.0  # seconds for the Hub to say what it has
_HEADROOM = 64 << 20  # bytes on the disk beside the weights: reports, images, temporary files


class Preflight:
    """Looks at what the steps that are to be done need, and changes nothing.

    Args:
        project: The release.
        due: The steps that are to be done.
        sign: A private key to sign with; None for no signature.
        problems: Where what is wrong is added.
        needs_token: Whether it is wrong that no token for the Hub is set.
    """

    def __init__(
        self,
        project: Project,
        due: set[str],
        sign: Path | None,
        problems: list[VaeconvError],
        *,
        needs_token: bool = True,
    ) -> None:
        self._project = project
        self._config = project.config
        self._due = due
        self._sign = sign
        self._problems = problems
        self._needs_token = needs_token

    def run(self) -> tuple[Destination, ...]:
        """Look at everything; what would be pushed to is returned."""
        self._look_at_folders()
        if self._due & {"convert", "prune"}:
            self._look_at_weights()
        if self._due & {"verify", "eval", "compare"}:
            self._look_at_devices()
        if "verify" in self._due:
            self._look_at_references()
        if self._due & {"eval", "compare"}:
            self._look_at_models()
        if "eval" in self._due and self._config.eval.images:
            self._look_at_images("eval", self._config.eval)
            self._look_at_metrics()
        if "compare" in self._due and self._config.compare.images:
            self._look_at_images("compare", self._config.compare)
        if "card" in self._due:
            self._look_at_cards()
        if self._sign is not None:
            key = self._sign
            self._attempt(lambda: check_key(key))
        return self._look_at_hub() if "push" in self._due else ()

    def _attempt(self, call: Callable[[], object]) -> None:
        attempt(self._problems, call)

    # --- this machine ---

    def _look_at_folders(self) -> None:
        """Check that files can be written: to a folder that is there, or that can be made."""
        project = self._project
        for folder in (project.folder, project.diffusers, project.original):
            present = next(one for one in (folder, *folder.parents) if os.path.lexists(one))
            if not present.is_dir():
                what = "cannot be made" if present == folder else f"cannot be made in {folder}"
                reason = "a file is in its place"
            elif not os.access(present, os.W_OK | os.X_OK):
                what, reason = "cannot be written", "it is read-only here"
            else:
                continue
            self._problems.append(
                OutputError(
                    f"{what}: {reason}",
                    where=str(present),
                    hint="name another folder in [output]",
                )
            )
            return

    def _look_at_weights(self) -> None:
        """Plan every file of weights, and check that there is room for them."""
        needed: list[int] = []
        self._attempt(lambda: needed.append(plan_bytes(self._project)))
        if not needed:
            return
        folder = self._project.folder
        wanted = {next(one for one in (folder, *folder.parents) if one.exists()): needed[0]}
        if "://" in self._project.source:  # what is read of it is kept here meanwhile
            wanted.setdefault(Path(tempfile.gettempdir()), needed[0])
        for place, size in wanted.items():
            free = shutil.disk_usage(place).free
            if free < size + _HEADROOM:
                self._problems.append(
                    OutputError(
                        f"{human_size(free)} are free, {human_size(size + _HEADROOM)} are needed",
                        where=str(place),
                        hint="make room there",
                    )
                )

    def _look_at_devices(self) -> None:
        missing = [name for name in ("torch", "diffusers") if find_spec(name) is None]
        if missing:
            self._problems.append(
                MissingDependencyError(
                    f"decoding needs {' and '.join(missing)}", hint="pip install torch diffusers"
                )
            )
            return
        tables = {"verify": self._config.verify.device, "eval": self._config.eval.device,
                  "compare": self._config.eval.device}  # fmt: skip
        for device in {tables[name] for name in tables if name in self._due}:
            if re.fullmatch(r"mps|cuda(:\d+)?", device):
                self._attempt(lambda: pick_device(device))  # noqa: B023 - called at once

    # --- what the file names ---

    def _look_at_references(self) -> None:
        project, table = self._project, self._config.verify
        latents, base = table.latents, project.place(table.drop_in_for)
        if latents:
            self._attempt(
                lambda: load_set(project.path(latents), project.survey().autoencoder.topology)
            )
        if base:
            self._attempt(lambda: _look_at_model(base))

    def _look_at_models(self) -> None:
        project = self._project
        others: list[ModelSpec] = []
        self._attempt(lambda: others.extend(project.other_models))
        self._attempt(lambda: name_models([project.own_model, *others]))
        for model in others:
            place, variant = model.path, model.variant
            self._attempt(lambda: _look_at_model(place, variant))  # noqa: B023

    def _look_at_images(self, name: str, table: EvalTable | CompareTable) -> None:
        assert table.images is not None
        place, limit = self._project.place(table.images), table.limit
        assert place is not None
        # The default of a comparison is how many at most.
        least = limit if name == "eval" or limit != CompareTable().limit else None
        self._attempt(lambda: self._look_at_set(name, place, least, table.size))

    def _look_at_set(self, name: str, place: str, least: int | None, size: int | None) -> None:
        images = ImageSet(place)
        try:
            number = len(images)
            if least and number < least:
                raise UsageError(
                    f"[{name}] limit is {least}, but there are only {plural(number, 'image')}",
                    where=place,
                )
            # One that is wrong is said already.
            protocol = PRESETS.get(self._config.eval.protocol, PRESETS["card-256"])
            protocol = protocol.changed(size=size)
            channels = self._project.survey().autoencoder.topology.in_channels
            chosen = range(0, number, max(1, number // _LOOKED_AT))
            items = [images.read(at, protocol, channels) for at in chosen]
        finally:
            images.close()
        if all(item.pixels is None for item in items):
            raise InputError(
                f"no image can be used, such as {items[0].name}: {items[0].reason}",
                where=place,
            )

    def _look_at_metrics(self) -> None:
        """Check that gates and tables get the metrics that they are about."""
        table = self._config.eval
        for net in NETS:
            metrics = set(net.serves) & set(table.metrics)
            is_judged = table.baseline is not None and "rfid" in metrics
            if metrics and (is_judged or not table.allow_missing_metrics):
                given = self._project.networks.get(net.name)
                self._attempt(partial(_check_network, net, given))
        if table.baseline:
            baseline = self._project.path(table.baseline)
            self._attempt(lambda: read_rfid(baseline))

    def _look_at_cards(self) -> None:
        """Check the front matter that the cards will have; what else is in them comes later."""
        project = self._project
        for folder in project.folders:
            self._attempt(lambda: self._look_at_card(folder))  # noqa: B023 - called at once

    def _look_at_card(self, folder: Path) -> None:
        with tempfile.TemporaryDirectory() as room:
            present, staged = folder / CARD, Path(room) / CARD
            if present.is_file():
                shutil.copyfile(present, staged)
            card = make_card(CardInputs(Path(room), meta=self._project.meta))
            staged.write_bytes(card.encode())
            problems = check_card(Path(room))
        for problem in problems:
            if not problem.startswith("the link "):  # to files that are not made yet
                self._problems.append(UsageError(f"[card] {problem}"))

    # --- the Hub ---

    def _look_at_hub(self) -> tuple[Destination, ...]:
        table = self._config.push
        found: list[Destination] = []
        for repo_id in filter(None, (table.repo_id, table.original_repo_id)):
            options = PushOptions(revision=table.revision, private=table.private, tag=table.tag)
            needs = self._needs_token
            look = partial(look_at, repo_id, options, Deadline(_PATIENCE), needs_token=needs)
            self._attempt(lambda: found.append(look()))  # noqa: B023 - called at once
        return tuple(found)


def _look_at_model(place: str, variant: str | None = None) -> None:
    with open_checkpoint(place, variant=variant) as checkpoint:
        survey_checkpoint(checkpoint)


def _check_network(net: Net, given: Path | None) -> None:
    """Check that a metric network is there, in the words of a release file.

    Raises:
        MissingWeightsError: It is not.
    """
    try:
        check_weights(net, given)
    except MissingWeightsError as error:
        key = net.option.removeprefix("--").replace("-", "_")
        error.hint = error.hint and error.hint.replace(net.option, f"{key} in [eval]")
        raise
