"""Watch what the modules of a model put out: peaks, what is not finite, where two models part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

    Look = Callable[[str, torch.Tensor], None]


class Peak(NamedTuple):
    """The largest activation of a run.

    Attributes:
        value: Its magnitude; infinite where activations were not finite.
        layer: The module that put it out, by its own layout's name.
    """

    value: float
    layer: str


class Hooks:
    """Calls a function with the output of every module without children, as they run.

    Args:
        model: The model; its modules are hooked while the block runs.
        look: Called with a module's name and its output.
    """

    def __init__(self, model: torch.nn.Module, look: Look) -> None:
        self._model = model
        self._look = look
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        for name, module in self._model.named_modules():
            if not any(module.children()):
                self._handles.append(module.register_forward_hook(self._hook(name)))

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Any:

        def call(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
            self._look(name, output)

        return call


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
    with Hooks(model, watch):
        run()
    return watch.first_nonfinite


class Parting(NamedTuple):
    """First layer whose outputs differ in two models.

    Attributes:
        layer: The first module that differs, by the first model's name.
        other: The same by the second model's name.
        max_abs: The largest difference between its outputs.
    """

    layer: str
    other: str
    max_abs: float


def find_parting(
    one: torch.nn.Module,
    other: torch.nn.Module,
    run_one: Callable[[], object],
    run_other: Callable[[], object],
    *,
    names: Mapping[str, str],
    tolerance: float,
) -> Parting | None:
    """Find the first module, in the order of the run, whose outputs differ in two models.

    Args:
        one: A model.
        other: Another, with the same modules under other names.
        run_one: Runs the first on some input.
        run_other: Runs the second on the same.
        names: Each module of the first and its name in the second.
        tolerance: Relative to the largest magnitude of an output, and at least to one.

    Returns:
        None where every pair of modules agrees.
    """
    outputs: dict[str, list[torch.Tensor]] = {}  # in the order of calls; of tiles there are several

    def keep(name: str, output: torch.Tensor) -> None:
        outputs.setdefault(name, []).append(output.float().cpu())

    with Hooks(other, keep):
        run_other()
    found: list[Parting] = []

    def compare(name: str, output: torch.Tensor) -> None:
        partner = names.get(name)
        if found or partner is None or not outputs.get(partner):
            return
        mine, theirs = output.float().cpu(), outputs[partner].pop(0)
        worst = _largest_difference(mine, theirs)
        if not worst <= tolerance * max(1.0, mine.abs().max().item()):  # NaN, too
            found.append(Parting(name, partner, worst))

    with Hooks(one, compare):
        run_one()
    return found[0] if found else None


def _largest_difference(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    """Compare outputs; in diffusers' attention they are rows ``[b, h * w, c]``."""
    views = [theirs]
    if mine.dim() != theirs.dim():
        mine, theirs = (mine.flatten(2), theirs) if mine.dim() > 3 else (mine, theirs.flatten(2))
        views = [theirs, theirs.transpose(1, 2)]
    differences = [(mine - view).abs().max().item() for view in views if view.shape == mine.shape]
    return min(differences, default=float("inf"))
