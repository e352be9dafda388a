"""Check all that a release needs before it begins, and list everything that is missing."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
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
from vaeconv.evaluation.metric_networks import MissingWeightsError, check_weights
from vaeconv.evaluation.models import ModelSpec, name_models
from vaeconv.evaluation.protocol import PRESETS
from vaeconv.models.devices import pick_device
from vaeconv.parity.references import load_set
from vaeconv.publish.card.card import CARD, CardInputs, make_card
from vaeconv.publish.card.check import check_card
from vaeconv.publish.hub.access import Destination, look_at
from vaeconv.publish.hub.push_options import PushOptions
from vaeconv.publish.hub.session import Deadline
from vaeconv.publish.release.check import noted
from vaeconv.publish.release.config import CompareTable, EvalTable
from vaeconv.publish.release.gates import read_rfid
from vaeconv.publish.release.project import Project
from vaeconv.publish.release.weights import plans
from vaeconv.publish.signing import check_key
from vaeconv.weights.detect import detect

_LOOKED_AT = 8  # images of a set; if none of them can be read, the set is not one
_PATIENCE = 120.0  # seconds for the Hub to say what it has
_HEADROOM = 64 << 20  # bytes on the disk beside the weights: reports, images, temporary files


@dataclass(frozen=True, slots=True)
class Preflight:
    """Looks at what the steps that are to be done need, and changes nothing.

    Attributes:
        project: The release.
        due: The steps that are to be done.
        sign: A private key to sign with; None for no signature.
        problems: Where what is wrong is added.
        needs_token: Whether it is wrong that no token for the Hub is set.
    """

    project: Project
    due: set[str]
    sign: Path | None
    problems: list[VaeconvError]
    needs_token: bool = True

    def run(self) -> tuple[Destination, ...]:
        """Look at everything; what would be pushed to is returned."""
        due, config = self.due, self.project.config
        with self._noted():
            self._look_at_folders()
        if due & {"convert", "prune"}:
            with self._noted():
                self._look_at_weights()
        if due & {"verify", "eval", "compare"}:
            self._look_at_devices()
        if "verify" in due:
            self._look_at_references()
        if due & {"eval", "compare"}:
            self._look_at_models()
        if "eval" in due:
            with self._noted():
                self._look_at_images("eval", config.eval, config.eval.limit)
            self._look_at_metrics()
        if "compare" in due:
            limit = config.compare.limit
            least = limit if limit != CompareTable().limit else None  # which is how many at most
            with self._noted():
                self._look_at_images("compare", config.compare, least)
        if "card" in due:
            self._look_at_cards()
        if self.sign is not None:
            with self._noted():
                check_key(self.sign)
        return self._look_at_hub() if "push" in due else ()

    def _noted(self) -> AbstractContextManager[None]:
        return noted(self.problems)

    # --- this machine ---

    def _look_at_folders(self) -> None:
        """Check that files can be written: to a folder that is there, or that can be made."""
        for folder in (self.project.folder, self.project.diffusers, self.project.original):
            present = next(one for one in (folder, *folder.parents) if os.path.lexists(one))
            if not present.is_dir():
                what = "cannot be made" if present == folder else f"cannot be made in {folder}"
                reason = "a file is in its place"
            elif not os.access(present, os.W_OK | os.X_OK):
                what, reason = "cannot be written", "it is read-only here"
            else:
                continue
            hint = "name another folder in [output]"
            raise OutputError(f"{what}: {reason}", where=str(present), hint=hint)

    def _look_at_weights(self) -> None:
        """Plan every file of weights, and check that there is room for them."""
        folder = self.project.folder
        with tempfile.TemporaryDirectory() as room:

            def place_of(target: Path) -> Path:
                return target if target.parent.is_dir() else Path(room) / target.name

            needed = sum(plan.nbytes for plan in plans(self.project, place_of)) + _HEADROOM
        places = [next(one for one in (folder, *folder.parents) if one.exists())]
        if "://" in self.project.source:  # what is read of it is kept here meanwhile
            places.append(Path(tempfile.gettempdir()))
        for place in dict.fromkeys(places):
            free = shutil.disk_usage(place).free
            if free < needed:
                what = f"{human_size(free)} are free, {human_size(needed)} are needed"
                self.problems.append(OutputError(what, where=str(place), hint="make room there"))

    def _look_at_devices(self) -> None:
        missing = [name for name in ("torch", "diffusers") if find_spec(name) is None]
        if missing:
            what = f"decoding needs {' and '.join(missing)}"
            self.problems.append(MissingDependencyError(what, hint="pip install torch diffusers"))
            return
        devices = {self.project.config.verify.device} if "verify" in self.due else set()
        if self.due & {"eval", "compare"}:
            devices.add(self.project.config.eval.device)
        for device in devices:
            if re.fullmatch(r"mps|cuda(:\d+)?", device):
                with self._noted():
                    pick_device(device)

    # --- what the file names ---

    def _look_at_references(self) -> None:
        project, table = self.project, self.project.config.verify
        if latents := project.path(table.latents):
            with self._noted():
                load_set(latents, project.detected.autoencoder.topology)
        if table.drop_in_for:
            self._look_at_model(project.place(table.drop_in_for))

    def _look_at_models(self) -> None:
        others: Sequence[ModelSpec] = ()
        with self._noted():
            others = self.project.other_models
        with self._noted():
            name_models([self.project.own_model, *others])
        for model in others:
            self._look_at_model(model.path, model.variant)

    def _look_at_model(self, place: str, variant: str | None = None) -> None:
        with self._noted(), open_checkpoint(place, variant=variant) as checkpoint:
            detect(checkpoint)

    def _look_at_images(
        self, name: str, table: EvalTable | CompareTable, least: int | None
    ) -> None:
        assert table.images is not None  # else the step is left out
        place = self.project.place(table.images)
        with closing(ImageSet(place)) as images:
            number = len(images)
            if least and number < least:
                raise UsageError(
                    f"[{name}] limit is {least}, but there are only {plural(number, 'image')}",
                    where=place,
                )
            # One that is wrong is said already.
            protocol = PRESETS.get(self.project.config.eval.protocol, PRESETS["card-256"])
            protocol = protocol.changed(size=table.size)
            channels = self.project.detected.autoencoder.topology.in_channels
            chosen = range(0, number, max(1, number // _LOOKED_AT))
            items = [images.read(at, protocol, channels) for at in chosen]
        if all(item.pixels is None for item in items):
            raise InputError(
                f"no image can be used, such as {items[0].name}: {items[0].reason}", where=place
            )

    def _look_at_metrics(self) -> None:
        """Check that gates and tables get the metrics that they are about."""
        table = self.project.config.eval
        for key, network, _ in table.networks():
            metrics = set(network.serves) & set(table.metrics)
            is_judged = table.baseline is not None and "rfid" in metrics
            if metrics and (is_judged or not table.allow_missing_metrics):
                try:
                    check_weights(network, self.project.networks.get(network.name))
                except MissingWeightsError as error:  # in the words of a release file
                    error.hint = error.hint and error.hint.replace(
                        network.option, f"{key} in [eval]"
                    )
                    self.problems.append(error)
        if baseline := self.project.path(table.baseline):
            with self._noted():
                read_rfid(baseline)

    def _look_at_cards(self) -> None:
        """Check the front matter that the cards will have; what else is in them comes later."""
        for folder in self.project.folders:
            with self._noted(), tempfile.TemporaryDirectory() as room:
                present, staged = folder / CARD, Path(room) / CARD
                if present.is_file():
                    shutil.copyfile(present, staged)
                card = make_card(CardInputs(Path(room), meta=self.project.meta))
                staged.write_bytes(card.encode())
                for problem in check_card(Path(room)):
                    if not problem.startswith("the link "):  # to files that are not made yet
                        self.problems.append(UsageError(f"[card] {problem}"))

    # --- the Hub ---

    def _look_at_hub(self) -> tuple[Destination, ...]:
        table = self.project.config.push
        options = PushOptions(revision=table.revision, private=table.private, tag=table.tag)
        found: list[Destination] = []
        for repo_id in filter(None, (table.repo_id, table.original_repo_id)):
            with self._noted():
                deadline = Deadline(_PATIENCE)
                found.append(look_at(repo_id, options, deadline, needs_token=self.needs_token))
        return tuple(found)
