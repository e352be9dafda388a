"""Activation hooks: peaks, what is not finite, and the first layer where two models diverge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch.utils.hooks import RemovableHandle

    Look = Callable[[str, torch.Tensor], None]
    Running = tuple[torch.nn.Module, Callable[[], object]]


class Peak(NamedTuple):
    """The largest activation of a run.

    Attributes:
        value: Its magnitude; infinite where activations were not finite.
        layer: The module that put it out, by its own layout's name.
    """

    value: float
    layer: str


@contextmanager
def hooked(model: torch.nn.Module, look: Look) -> Iterator[None]:
    """Call a function with the name and the output of every module without children that runs."""

    def watch(name: str, module: torch.nn.Module) -> RemovableHandle:
        return module.register_forward_hook(lambda _, inputs, output: look(name, output))

    leaves = [one for one in model.named_modules() if not any(one[1].children())]
    handles = [watch(name, module) for name, module in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class PeakWatch:
    """Remembers the largest activation, and the first that is not finite."""

    def __init__(self) -> None:
        self.peak = Peak(0.0, "")
        self.first_nonfinite: str | None = None

    def __call__(self, name: str, output: torch.Tensor) -> None:
        """Look at one output."""
        largest = output.abs().max().item()
        if not largest < float("inf"):  # NaN, too
            self.first_nonfinite = self.first_nonfinite or name
            largest = float("inf")
        if largest > self.peak.value:
            self.peak = Peak(largest, name)


def first_nonfinite(model: torch.nn.Module, run: Callable[[], object]) -> str | None:
    """Name the first module whose output holds NaN or infinity during a run; None if none."""
    watch = PeakWatch()
    with hooked(model, watch):
        run()
    return watch.first_nonfinite


class Divergence(NamedTuple):
    """First layer whose outputs differ in two models.

    Attributes:
        layer: The first module that differs, by the first model's name.
        other: The same by the second model's name.
        max_abs: The largest difference between its outputs.
    """

    layer: str
    other: str
    max_abs: float


def first_diverging(
    one: Running, other: Running, *, names: Mapping[str, str], tolerance: float
) -> Divergence | None:
    """Find the first module, in the order of the run, whose outputs differ in two models.

    Args:
        one: A model, and what runs it on some input.
        other: Another with the same modules under other names, and what runs it on the same input.
        names: Each module of the first and its name in the second.
        tolerance: Relative to the largest magnitude of an output, and at least to one.

    Returns:
        None where every pair of modules agrees.
    """
    outputs: dict[str, list[torch.Tensor]] = {}  # in the order of calls; of tiles there are several

    def keep(name: str, output: torch.Tensor) -> None:
        outputs.setdefault(name, []).append(output.float().cpu())

    found: list[Divergence] = []

    def compare(name: str, output: torch.Tensor) -> None:
        partner = names.get(name)
        if found or partner is None or not outputs.get(partner):
            return
        mine, theirs = output.float().cpu(), outputs[partner].pop(0)
        worst = _largest_difference(mine, theirs)
        if not worst <= tolerance * max(1.0, mine.abs().max().item()):  # NaN, too
            found.append(Divergence(name, partner, worst))

    for (model, run), look in ((other, keep), (one, compare)):
        with hooked(model, look):
            run()
    return found[0] if found else None


def _largest_difference(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    """Compare outputs; in diffusers' attention they are rows ``[b, h * w, c]``."""
    views = [theirs]
    if mine.dim() != theirs.dim():
        mine, theirs = (mine.flatten(2), theirs) if mine.dim() > 3 else (mine, theirs.flatten(2))
        views = [theirs, theirs.transpose(1, 2)]
    differences = [(mine - view).abs().max().item() for view in views if view.shape == mine.shape]
    return min(differences, default=float("inf"))
