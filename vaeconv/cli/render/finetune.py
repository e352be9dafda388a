"""A fine-tuning as text and as a document: its lines while it runs, and its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vaeconv.cli.output import print_notes
from vaeconv.common.wording import human_size
from vaeconv.evaluation.metrics import COLUMNS, UNITS

if TYPE_CHECKING:
    from vaeconv.training.finetune import Finetuned

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
# Numbers of a step behind its loss, and what they are called in a line of a terminal.
_PARTS = {"pixel": "pixel", "lpips": "lpips", "adversarial": "adversarial",
          "adversarial_weight": "its weight", "discriminator": "discriminator"}  # fmt: skip


def print_record(record: Mapping[str, Any]) -> None:
    """Write a line of metrics.jsonl to stderr, for people."""
    print_notes([record_line(record)])


def record_line(record: Mapping[str, Any]) -> str:
    """Say a line of metrics.jsonl in words."""
    step = f"step {record['step']}"
    if "val" in record:
        return f"{step}: {'; '.join(_measured(record['val']))}"
    parts = ", ".join(f"{said} {record[name]:.4g}" for name, said in _PARTS.items()
                      if name in record)  # fmt: skip
    now = record["now"]
    memory = "" if now["memory"] is None else f", {human_size(now['memory'])}"
    unreadable = f", {now['unreadable']} unreadable" if now["unreadable"] else ""
    return (
        f"{step}: loss {record['loss']:.4g} ({parts}), gradient {record['grad_norm']:.3g}, "
        f"lr {record['lr']:.3g}, {now['images_per_second']:.3g} images/s{memory}{unreadable}, "
        f"{_duration(now['seconds_left'])} left"
    )


def _measured(val: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Say what was measured, a part for each metric."""
    for name in val["base"]:
        digits = COLUMNS[name][1] + 2
        values = ", ".join(
            f"{'EMA' if kind == 'ema' else kind} {means[name]:.{digits}f}{UNITS.get(name, '')}"
            for kind, means in val.items()
            if name in means
        )
        yield f"{COLUMNS[name][0]} {values}"


def _duration(seconds: float) -> str:
    """Write a time in the two units that matter."""
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < _HOUR:
        return f"{seconds // _MINUTE:.0f} min {seconds % _MINUTE:.0f} s"
    if seconds < _DAY:
        return f"{seconds // _HOUR:.0f} h {seconds % _HOUR // _MINUTE:.0f} min"
    return f"{seconds // _DAY:.0f} d {seconds % _DAY // _HOUR:.0f} h"


def finetune_lines(done: Finetuned) -> Iterator[str]:
    """Tell a person what was trained, or would be."""
    yield str(done)
    if done.validation:
        yield from (f"  {line}" for line in _measured(done.validation))
    if not done.is_dry:
        if not done.steps_taken:
            yield "  all steps were taken before"
        yield f"wrote {done.checkpoint} ({human_size(done.checkpoint.stat().st_size)})"


def finetune_document(done: Finetuned) -> dict[str, Any]:
    """Describe a fine-tuning for machines."""
    tensors, values = done.trained
    return {
        "dry_run": done.is_dry,
        "base": done.base,
        "checkpoint": str(done.checkpoint),
        "step": done.step,
        "steps_taken": done.steps_taken,
        "images": done.images,
        "images_per_step": done.images_per_step,
        "trained": {"tensors": tensors, "values": values},
        "validation": done.validation,
        "skipped": [one._asdict() for one in done.skipped],
        "left_out": [one._asdict() for one in done.left_out],
    }
