"""A release: convert, prune, verify, eval, compare, card, push, from one file.

It can be run again after any failure: each step's inputs are hashed, and a step that is done, and
whose inputs are the same, is not done again. What a step wrote must still be what it wrote: a file
that changed since is refused.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from vaeconv.autoencoder.scaling import ScalingOptions
from vaeconv.autoencoder.topology import Layout
from vaeconv.checkpoint.atomic import replace_small_file
from vaeconv.checkpoint.open import open_checkpoint
from vaeconv.conversion import ConvertOptions, convert
from vaeconv.errors import CheckFailedError, InputError, OutputError, UsageError
from vaeconv.evaluate.comparing import CompareOptions, compare, write_comparison
from vaeconv.evaluate.evaluation import EvalOptions, evaluate
from vaeconv.evaluate.models import ModelSpec, read_models_file
from vaeconv.evaluate.protocol import preset
from vaeconv.output import MANIFEST, hash_bytes
from vaeconv.parity.behaviour import Limits
from vaeconv.parity.report import report_document, write_report
from vaeconv.parity.side import SideOptions
from vaeconv.parity.verification import VerifyOptions, verify
from vaeconv.prune_options import PruneOptions
from vaeconv.pruning import prune
from vaeconv.publish.card import CARD, CardInputs, read_document, write_card
from vaeconv.publish.checking import check_card
from vaeconv.publish.meta import CardMeta
from vaeconv.publish.push_options import PushOptions
from vaeconv.publish.pushing import Pushed, push
from vaeconv.publish.release_config import ReleaseConfig
from vaeconv.publish.release_files import (
    check_release,
    hash_file,
    list_release,
    parity_reports,
)
from vaeconv.survey import Survey, survey_checkpoint

STEPS = ("convert", "prune", "verify", "eval", "compare", "card", "push")
_STATE = "state.json"
_EVAL, _ASSETS = "eval.json", "assets"
_PASSING = ("timing", "seconds")
# A card is people's as well, and the Hub may have changed: both are looked at each time.
_ALWAYS = ("card", "push")


class StepResult(NamedTuple):
    """What became of a step.

    Attributes:
        name: Of the step.
        outcome: ``done``, ``unchanged`` or ``left out``.
        facts: What there is to say of it.
    """

    name: str
    outcome: str
    facts: dict[str, Any]


class Release(NamedTuple):
    """What became of a release.

    Attributes:
        steps: In their order.
        folder: Where everything is.
        pushed: What was published, repository by repository.
    """

    steps: tuple[StepResult, ...]
    folder: Path
    pushed: tuple[Pushed, ...]


def release(
    config: ReleaseConfig,
    root: Path,
    *,
    first: str | None = None,
    last: str | None = None,
    dry_run: bool = False,
    on_step: Callable[[str], None] | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Release:
    """Make a release, as far as it is not made yet.

    Args:
        config: What to release.
        root: The folder that paths in it are taken from.
        first: Do this step and those after it again, whatever is done.
        last: Stop after this step.
        dry_run: Say what would be done, and do nothing.
        on_step: Called with the name of each step that runs.
        on_progress: Called with what is being done, and how much of it is done of how much.

    Raises:
        CheckFailedError: A gate said no, or a file is not what a step wrote.
        VaeconvError: A step failed, as its function says.
    """
    run = _Release(config, root, on_step, on_progress)
    return run.run(first=first, last=last, dry_run=dry_run)


class _Release:
    def __init__(
        self,
        config: ReleaseConfig,
        root: Path,
        on_step: Callable[[str], None] | None,
        on_progress: Callable[[str, int, int], None] | None,
    ) -> None:
        self._config = config
        self._root = root
        self._on_step = on_step or (lambda name: None)
        self._on_progress = on_progress
        self._folder = self._path(config.output.folder)
        self._diffusers = self._folder / "diffusers"
        self._original = self._folder / "original"
        self._state: dict[str, Any] = {}
        self._hashes: dict[Path, str] = {}
        self._contents: dict[Path, Any] = {}
        self._forced = False
        self._source_hashes: list[str] | None = None
        self._known_survey: Survey | None = None
        self._pushed: list[Pushed] = []

    def _path(self, text: str) -> Path:
        return Path(text) if "://" in text else self._root / text

    def _place(self, text: str | None) -> str | None:
        """Take a path from the file's folder; an address stays."""
        return None if text is None else text if "://" in text else str(self._root / text)

    # --- the chain ---

    def run(self, *, first: str | None, last: str | None, dry_run: bool) -> Release:
        wanted = STEPS[: STEPS.index(last) + 1] if last else STEPS
        if not dry_run:
            self._make_folders()
        self._state = self._read_state()
        results: list[StepResult] = []
        for name in wanted:
            self._forced = self._forced or name == first
            results.append(self._run_step(name, dry_run=dry_run))
        return Release(tuple(results), self._folder, tuple(self._pushed))

    def _run_step(self, name: str, *, dry_run: bool) -> StepResult:
        work: Callable[[], tuple[list[Path], dict[str, Any]] | None] = getattr(self, f"_do_{name}")
        inputs = self._inputs_of(name)
        known = self._state.get(name, {})
        if inputs is None:
            if known and not dry_run:
                self._remove_stale(known["outputs"], [])
                del self._state[name]
                self._write_state()
            return StepResult(name, "left out", {})
        is_done = not self._forced and known.get("inputs") == inputs and name not in _ALWAYS
        if is_done and self._outputs_stand(name, known["outputs"]):
            return StepResult(name, "unchanged", known["facts"])
        if dry_run:
            return StepResult(name, "to do", {})
        self._on_step(name)
        if known:  # until it is done, its files are neither what they were nor what they will be
            known["inputs"] = None
            self._write_state()
        done = work()
        outputs, facts = done or ([], {})
        self._remove_stale(known.get("outputs", {}), outputs)
        self._state[name] = {
            "inputs": inputs,
            "outputs": {self._name(path): self._sha256(path, fresh=True) for path in outputs},
            "facts": facts,
        }
        self._write_state()
        return StepResult(name, "done", facts)

    def _write_state(self) -> None:
        data = json.dumps(self._state, indent=1, sort_keys=True).encode() + b"\n"
        replace_small_file(self._folder / _STATE, data, durable=True)

    def _remove_stale(self, before: dict[str, str], outputs: Sequence[Path]) -> None:
        """Remove what an earlier run of the step wrote and this one did not."""
        for path in set(before) - {self._name(path) for path in outputs}:
            file = self._folder / path
            if file.is_file() and self._sha256(file, fresh=True) == before[path]:
                file.unlink()

    def _make_folders(self) -> None:
        try:
            for folder in (self._folder, self._diffusers, self._original):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot be made: {error.strerror}", where=str(self._folder)
            ) from error

    def _read_state(self) -> dict[str, Any]:
        try:
            state = json.loads((self._folder / _STATE).read_bytes())
        except (OSError, ValueError):
            return {}
        return dict(state) if isinstance(state, dict) and _is_state(state) else {}

    def _outputs_stand(self, name: str, outputs: dict[str, str]) -> bool:
        """Tell whether a step's files are all there.

        Raises:
            CheckFailedError: One is there and is not what the step wrote.
        """
        for path, sha256 in outputs.items():
            file = self._folder / path
            if not file.exists():
                return False
            if self._sha256(file) != sha256:
                raise CheckFailedError(
                    f"is not what the step {name} wrote: it was changed since",
                    where=str(file),
                    hint=f"remove it, or make it again with --from {name}",
                )
        return True

    def _name(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()

    def _sha256(self, path: Path, *, fresh: bool = False) -> str:
        if fresh or path not in self._hashes:
            self._hashes[path] = hash_file(path, path.name).sha256
        return self._hashes[path]

    # --- what each step depends on ---

    def _inputs_of(self, name: str) -> str | None:
        """Hash what decides a step's result; None where the step is not wanted."""
        config = self._config
        source = [asdict(config.source), self._source_sha256()]
        weights = [*source, asdict(config.output), self._content(config.source.config)]
        own = self._own_model().name
        table, pictures = config.eval, config.compare
        others = [own, table.protocol, table.device, self._content(table.models)]
        facts: Any = {
            "convert": weights,
            "prune": weights if config.output.original else None,
            "verify": [weights, asdict(config.verify), self._content(config.verify.latents)],
            "eval": [
                weights, asdict(table), others,
                self._content(table.images), self._content(table.baseline),
            ] if table.images else None,
            "compare": [
                weights, asdict(pictures), others, self._content(pictures.images),
            ] if pictures.images else None,
            "card": [
                weights, asdict(config.card), asdict(config.push),
                [self._state.get(step, {}).get("outputs") for step in STEPS[:5]],
            ],
            "push": [asdict(config.push)] if config.push.repo_id else None,
        }[name]  # fmt: skip
        if facts is None:
            return None
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()

    def _source_sha256(self) -> list[str]:
        if self._source_hashes is None:
            with open_checkpoint(self._source) as checkpoint:
                self._source_hashes = [hash_bytes(one) for one in checkpoint.sources]
        return self._source_hashes

    def _content(self, text: str | None) -> Any:
        """Hash a file, or each file in a folder; None for what is not here."""
        path = self._path(text) if text else None
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

    @property
    def _source(self) -> str:
        return self._place(self._config.source.checkpoint) or ""

    # --- the steps: each gives the files that it wrote, and what to say of it ---

    def _do_convert(self) -> tuple[list[Path], dict[str, Any]]:
        source, outputs = self._config.source, []
        manifest = self._diffusers / MANIFEST
        manifest.unlink(missing_ok=True)  # each variant adds to what is there
        for dtype, variant in self._variants():
            done = convert(
                self._source,
                self._diffusers,
                ConvertOptions(
                    dtype=dtype,
                    variant=variant,
                    source_prefix=source.source_prefix,
                    scaling=self._scaling(),
                    config=self._path(source.config) if source.config else None,
                    ema=source.ema and self._has_average(),
                    overwrite=True,
                    hash_source=True,
                ),
            )
            outputs += [written.path for written in done.written]
        return sorted({*outputs, manifest}), {
            "folder": "diffusers",
            "variants": [v for _, v in self._variants()],
        }

    def _do_prune(self) -> tuple[list[Path], dict[str, Any]]:
        source, output = self._config.source, self._config.output
        written: list[Path] = []
        for ending in output.original_formats:
            target = self._original / f"{output.original}.{ending.lstrip('.')}"
            if self._layout() is Layout.COMPVIS:
                prune(
                    self._source,
                    target,
                    PruneOptions(
                        dtype=output.original_dtype,
                        ema=source.ema and self._has_average(),
                        vae_only=True,
                        source_prefix=source.source_prefix,
                        overwrite=True,
                        hash_source=True,
                        manifest=True,
                    ),
                )
            else:
                convert(
                    self._source,
                    target,
                    ConvertOptions(
                        dtype=output.original_dtype,
                        source_prefix=source.source_prefix,
                        overwrite=True,
                        hash_source=True,
                        manifest=True,
                    ),
                )
            written += [target, target.with_name(f"{target.name}.{MANIFEST}")]
        return written, {"files": [path.name for path in written[::2]]}

    def _do_verify(self) -> tuple[list[Path], dict[str, Any]]:
        """Prove each published file against the source; the gate of parity."""
        table = self._config.verify
        reports: list[Path] = []
        targets = [
            (self._diffusers, variant, self._diffusers / _report_name(variant))
            for _, variant in self._variants()
        ]
        for ending in self._config.output.original_formats if self._config.output.original else ():
            name = f"{self._config.output.original}.{ending.lstrip('.')}"
            targets.append((self._original / name, None, self._original / f"parity-{name}.json"))
        for number, (target, variant, path) in enumerate(targets):
            drop_in = self._place(table.drop_in_for) if number == 0 else None
            source: tuple[Any, SideOptions] = (
                self._source,
                SideOptions(source_prefix=self._config.source.source_prefix),
            )
            sides = [source, (target, SideOptions(variant=variant))]
            if drop_in:  # what is published stands in for the other, with the scaling that it has
                sides.reverse()
            result = verify(
                sides[0][0],
                sides[1][0],
                VerifyOptions(
                    a=sides[0][1],
                    b=sides[1][1],
                    ema=self._config.source.ema and self._has_average(),
                    device=table.device,
                    dtype=table.dtype,
                    limits=Limits(),
                    latents=self._path(table.latents) if table.latents else None,
                    on_progress=self._on_progress,
                ),
                drop_in_for=drop_in,
            )
            document = report_document(result)
            write_report(path, self._publishable("verify", document))
            result.check()
            reports.append(path)
        return reports, {"verdict": "passed", "reports": [self._name(path) for path in reports]}

    def _do_eval(self) -> tuple[list[Path], dict[str, Any]]:
        table = self._config.eval
        assert table.images is not None
        specs = [self._own_model()]
        if table.models:
            specs += read_models_file(self._path(table.models))
        target = self._diffusers / _EVAL
        parts = self._parts()
        result = evaluate(
            specs,
            self._path(table.images),
            parts,
            EvalOptions(
                protocol=preset(table.protocol).changed(size=table.size),
                metrics=table.metrics,
                allow_missing=table.allow_missing_metrics,
                limit=table.limit,
                device=table.device,
                restart=True,
                quiet=True,
                on_progress=self._on_progress,
            ),
        )
        assert result is not None
        write_report(target, self._publishable("eval", {"ok": True, **result}))
        self._check_metrics(result["models"][0]["metrics"])
        metrics = result["models"][0]["metrics"]
        means = {name: one if name == "rfid" else one["mean"] for name, one in metrics.items()}
        return [target], {"metrics": means}

    def _parts(self) -> Path:
        """Where the evaluation keeps what it measured; what is of other pictures is removed."""
        said = json.dumps(self._content(self._config.eval.images)).encode()
        kept = self._folder / f"eval-{hashlib.sha256(said).hexdigest()[:16]}.parts"
        for folder in self._folder.glob("eval-*.parts"):
            if folder != kept or self._forced:
                shutil.rmtree(folder, ignore_errors=True)
        return kept

    def _check_metrics(self, metrics: dict[str, Any]) -> None:
        """The gates of the evaluation; what is no number passes none.

        Raises:
            CheckFailedError: One said no.
            UsageError: What a gate judges is not there.
        """
        table = self._config.eval
        if table.min_psnr is not None:
            if "psnr" not in metrics:
                raise UsageError("the gate on PSNR needs PSNR in the result")
            found = metrics["psnr"]
            psnr = found["mean"]
            is_exact = psnr is None and found.get("infinite", 0) > 0
            if not is_exact and (psnr is None or not psnr >= table.min_psnr):
                said = "no number" if psnr is None else f"{psnr:.2f} dB"
                raise CheckFailedError(
                    f"PSNR is {said}, less than the {table.min_psnr:g} of min_psnr"
                )
        if table.baseline:
            before, now = self._baseline(self._path(table.baseline)), metrics.get("rfid")
            if before is None or now is None:
                raise UsageError("the gate on rFID needs rFID in both results")
            if not now <= before + table.max_rfid_regression:
                raise CheckFailedError(
                    f"rFID is {now:.2f}, and {before:.2f} in the baseline: more than the "
                    f"{table.max_rfid_regression:g} of max_rfid_regression worse"
                )

    def _baseline(self, path: Path) -> float | None:
        """The rFID of an earlier result; None where it has none.

        Raises:
            InputError: It is no result.
        """
        try:
            rows = read_document(path, "eval")["models"]
            found = rows[0]["metrics"].get("rfid")
            return None if found is None else float(found)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise InputError("not a result of vaeconv eval", where=str(path)) from error

    def _do_compare(self) -> tuple[list[Path], dict[str, Any]]:
        table = self._config.compare
        assert table.images is not None
        specs = [self._own_model()]
        if self._config.eval.models:
            specs = [*read_models_file(self._path(self._config.eval.models)), *specs]
        assets = self._diffusers / _ASSETS
        done = compare(
            specs,
            self._path(table.images),
            assets,
            CompareOptions(
                protocol=preset(self._config.eval.protocol).changed(size=table.size),
                limit=table.limit,
                labels=table.labels,
                sheet=0,
                overwrite=True,
                device=self._config.eval.device,
                on_progress=self._on_progress,
            ),
        )
        report = write_comparison(done, assets)
        return [*(path for path, _ in done.pictures), report], {"pictures": len(done.pictures)}

    def _do_card(self) -> tuple[list[Path], dict[str, Any]]:
        config, meta = self._config, self._meta()
        evaluations: tuple[dict[str, Any], ...] = ()
        if config.eval.images:
            evaluations = (read_document(self._diffusers / _EVAL, "eval"),)
        parity = read_document(self._diffusers / _report_name(None), "verify")
        cards = [
            write_card(
                CardInputs(
                    self._diffusers,
                    meta=meta,
                    evaluations=evaluations,
                    parity=parity,
                    pictures=self._diffusers / _ASSETS if config.compare.images else None,
                )
            )
        ]
        self._check_card(self._diffusers, evaluations)
        if config.output.original:
            name = f"{config.output.original}.{config.output.original_formats[0].lstrip('.')}"
            proof = read_document(self._original / f"parity-{name}.json", "verify")
            cards.append(
                write_card(
                    CardInputs(self._original, meta=meta, evaluations=evaluations, parity=proof)
                )
            )
            self._check_card(self._original, evaluations)
        return cards, {"cards": [self._name(card) for card in cards]}

    def _check_card(self, folder: Path, evaluations: Sequence[dict[str, Any]]) -> None:
        problems = check_card(folder, evaluations)
        if problems:
            raise CheckFailedError(problems[0], where=str(folder / CARD))

    def _do_push(self) -> tuple[list[Path], dict[str, Any]]:
        table = self._config.push
        options = PushOptions(
            revision=table.revision,
            private=table.private,
            tag=table.tag,
            message=table.message,
            verify=table.verify,
            on_progress=self._on_progress,
        )
        if table.original_repo_id:  # both or none: what push would refuse is refused before
            self._check_original()
        self._pushed.append(push(self._diffusers, table.repo_id, options))
        if table.original_repo_id:
            self._pushed.append(push(self._original, table.original_repo_id, options))
        commits = {one.repo_id: one.oid for one in self._pushed}
        return [], {"commits": commits, "new": [one.repo_id for one in self._pushed if one.is_new]}

    def _check_original(self) -> None:
        folder = self._original
        problems = check_release(folder, list_release(folder), reports=parity_reports(folder))
        if problems:
            raise CheckFailedError(f"not fit to be published: {problems[0]}", where=str(folder))

    # --- facts that several steps need ---

    def _publishable(self, command: str, document: dict[str, Any]) -> dict[str, Any]:
        """Leave out what differs from run to run, and where on this machine things are."""
        kept = {key: value for key, value in document.items() if key not in _PASSING}
        text = json.dumps({"schema_version": 1, "command": command, **kept})
        config = self._config
        given = (config.source.checkpoint, config.verify.drop_in_for, config.verify.latents)
        for path in sorted(
            (one for one in given if one and Path(one).is_absolute()), key=len, reverse=True
        ):
            text = text.replace(json.dumps(path)[1:-1], json.dumps(Path(path).name)[1:-1])
        prefix = json.dumps(f"{self._root}/")[1:-1]
        return dict(json.loads(text.replace(prefix, ""), object_hook=_without_places))

    def _variants(self) -> list[tuple[str, str | None]]:
        """Each dtype of the diffusers folder with its variant; fp32, else the first, is plain."""
        dtypes = self._config.output.dtypes
        plain = "fp32" if "fp32" in dtypes else dtypes[0]
        return [(plain, None), *((dtype, dtype) for dtype in dtypes if dtype != plain)]

    def _scaling(self) -> ScalingOptions:
        source = self._config.source
        return ScalingOptions(source.scaling_factor, source.shift_factor, source.family)

    def _survey(self) -> Survey:
        if self._known_survey is None:
            with open_checkpoint(self._source) as checkpoint:
                prefix = self._config.source.source_prefix
                self._known_survey = survey_checkpoint(checkpoint, prefix=prefix)
        return self._known_survey

    def _layout(self) -> Layout:
        return self._survey().autoencoder.layout

    def _has_average(self) -> bool:
        return bool(self._survey().ema.shadows)

    def _own_model(self) -> ModelSpec:
        name = self._config.card.model or self._config.card.title or "this model"
        return ModelSpec(path=str(self._diffusers), name=name)

    def _meta(self) -> CardMeta:
        """The card's facts, with what other tables say."""
        config = self._config
        formats = config.output.original_formats
        original = f"{config.output.original}.{formats[0].lstrip('.')}" if formats else ""
        meta = config.card
        return replace(
            meta,
            repo_id=meta.repo_id or config.push.repo_id,
            original_repo_id=meta.original_repo_id or config.push.original_repo_id,
            original_file=meta.original_file or (original if config.output.original else ""),
            model=meta.model or self._own_model().name,
            eval_titles=meta.eval_titles or ((config.eval.title,) if config.eval.title else ()),
        )


def _is_state(state: dict[Any, Any]) -> bool:
    """Tell whether a file of what was done is whole."""
    return all(
        isinstance(step, dict)
        and step.keys() == {"inputs", "outputs", "facts"}
        and isinstance(step["outputs"], dict)
        and isinstance(step["facts"], dict)
        for step in state.values()
    )


def _without_places(found: dict[str, Any]) -> dict[str, Any]:
    """Leave the last part only of a path that leads out of the release's folder."""
    places = {
        key: Path(found[key]).name
        for key in ("path", "name", "source")
        if isinstance(found.get(key), str) and Path(found[key]).is_absolute()
    }
    return {**found, **places}


def _report_name(variant: str | None) -> str:
    return f"parity-{variant}.json" if variant else "parity.json"


def check_steps(first: str | None, last: str | None) -> None:
    """Check the names of steps.

    Raises:
        UsageError: There is no such step, or the last comes before the first.
    """
    for name in filter(None, (first, last)):
        if name not in STEPS:
            raise UsageError(f"no step is called {name}", hint=f"steps: {', '.join(STEPS)}")
    if first and last and STEPS.index(first) > STEPS.index(last):
        raise UsageError(f"--from {first} comes after --until {last}")
