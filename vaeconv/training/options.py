"""How to fine-tune: recipes as tables of values, and the options that change them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from vaeconv.common import option_docs as docs
from vaeconv.common.option_checks import MOST_PIXELS, Range, check_fields
from vaeconv.common.option_docs import Doc, choice
from vaeconv.errors import UsageError
from vaeconv.evaluation.metric_networks import LPIPS_FILE, VGG_FILE
from vaeconv.evaluation.protocol import POSTERIORS
from vaeconv.models.open_model import ModelOptions, OfOneModel
from vaeconv.weights.idle_options import Rule, refuse_idle

_LOSS, _OPTIMIZER, _IMAGES = "Loss", "Optimizer", "Images"
_ENGINE, _OUTPUT = "Engine", "Checkpoints and validation"


class Recipe(NamedTuple):
    """Loss of a decoder of the card.

    Attributes:
        pixel: ``l1`` or ``mse``, of values from -1 to 1.
        lpips: Weight of LPIPS beside it, for each element of an image.
    """

    pixel: str
    lpips: float


# As the card of sd-vae-ft-mse has them; what it does not say is in docs/finetune.md.
RECIPES = {"ft-ema": Recipe("l1", 1.0), "ft-mse": Recipe("mse", 0.1)}
PIXELS, CROPS, PRECISIONS = ("l1", "mse"), ("random", "center"), ("fp32", "bf16")
TRACKERS = ("tensorboard", "wandb")
_POSITIVE = Range(0, is_open=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneOptions:
    """Options of a fine-tuning; each says what it does.

    Attributes:
        reading: How to read the base.
        on_progress: Called with what is being done, and how much of it is done of how much.
        on_record: Called with each line of ``metrics.jsonl``, in the first process only.

    Example:
        >>> FinetuneOptions(steps=1000, recipe="ft-mse").loss
        Recipe(pixel='mse', lpips=0.1)
    """

    steps: Annotated[
        int,
        Doc("Optimizer steps to take, counted from the base.", "N", flags=("--steps",), least=1),
    ]
    ema: Annotated[
        bool, Doc("Start from the base's EMA weights, as ft-MSE started from ft-EMA's.")
    ] = False
    recipe: Annotated[
        str,
        Doc(
            "Loss: ft-ema (L1 + 1.0 LPIPS) or ft-mse (MSE + 0.1 LPIPS); --pixel and --lpips "
            "change it.",
            "NAME",
            _LOSS,
            choices=tuple(RECIPES),
        ),
    ] = "ft-ema"
    pixel: Annotated[
        str | None,
        choice("Loss of pixels, by default the recipe's", "NAME", PIXELS, _LOSS),
    ] = None
    lpips: Annotated[
        float | None,
        Doc(
            "Weight of LPIPS, by default the recipe's; 0 needs no network weights.",
            "X",
            _LOSS,
            least=0,
        ),
    ] = None
    adversarial: Annotated[
        float,
        Doc(
            "Weight of the adversarial loss with LDM's discriminator: 0 for none, 0.5 as in LDM.",
            "X",
            _LOSS,
            least=0,
        ),
    ] = 0.0
    adversarial_start: Annotated[
        int, Doc("Step at which the adversarial loss begins.", "N", _LOSS, least=0)
    ] = 0
    lr: Annotated[
        float,
        Doc("Learning rate of Adam, whatever the batch is.", "X", _OPTIMIZER, rule=_POSITIVE),
    ] = 1e-4
    warmup: Annotated[
        int, Doc("Steps in which the learning rate rises to its value.", "N", _OPTIMIZER, least=0)
    ] = 0
    clip: Annotated[
        float | None,
        Doc(
            "Largest norm of the gradient, which is a sum over an image: usual norms are 1e3 to "
            "1e5. By default it is not clipped.",
            "X",
            _OPTIMIZER,
            rule=_POSITIVE,
        ),
    ] = None
    ema_decay: Annotated[
        float,
        Doc(
            "Share of the EMA that a step keeps; less of it in the first steps.",
            "X",
            _OPTIMIZER,
            rule=Range(0, most=1),
        ),
    ] = 0.9999
    batch_size: Annotated[
        int, Doc("Images that a process runs at a time.", "N", _OPTIMIZER, least=1)
    ] = 12
    accumulate: Annotated[
        int,
        Doc("Batches whose gradients a process adds up for one step.", "N", _OPTIMIZER, least=1),
    ] = 1
    seed: Annotated[
        int,
        Doc("Random seed for the order of images, crops and posterior samples.", "N", _OPTIMIZER),
    ] = 0
    size: Annotated[
        int,
        Doc("Side of the square images, in pixels.", "PIXELS", _IMAGES,
            rule=Range(1, most=MOST_PIXELS)),
    ] = 256  # fmt: skip
    crop: Annotated[
        str,
        Doc(
            "Part of an image: random, a square of two thirds of its shorter side where that "
            "leaves enough pixels, or center, the largest one in the middle.",
            "HOW",
            _IMAGES,
            choices=CROPS,
        ),
    ] = "random"
    flip: Annotated[bool, Doc("Mirror half of the images.", panel=_IMAGES)] = False
    posterior: Annotated[
        str, choice("Latent to decode", "HOW", POSTERIORS[::-1], _IMAGES)
    ] = "sample"  # fmt: skip
    precision: Annotated[
        str,
        Doc(
            "Type of activations: fp32, or bf16 by autocast with weights in fp32.",
            "TYPE",
            _ENGINE,
            suggested=PRECISIONS,
        ),
    ] = "fp32"
    gradient_checkpointing: Annotated[
        bool,
        Doc("Compute activations again for the gradient: less memory, more time.", panel=_ENGINE),
    ] = False
    compiles: Annotated[
        bool, Doc("Compile the decoder with torch.compile.", panel=_ENGINE, flags=("--compile",))
    ] = False
    device: docs.Device = "auto"
    workers: Annotated[
        int,
        Doc("Threads of a process that read images; 0 for none beside it.", "N", _ENGINE, least=0),
    ] = 4
    expect_world_size: Annotated[
        int | None,
        Doc("Refuse to run in more or fewer processes than this.", "N", _ENGINE, least=1),
    ] = None
    save_every: Annotated[
        int, Doc("Steps from one checkpoint to the next.", "N", _OUTPUT, least=1)
    ] = 5000
    keep: Annotated[
        int, Doc("Checkpoints to keep; older ones are removed.", "N", _OUTPUT, least=1)
    ] = 3
    val: Annotated[
        str | None, Doc(f"Images to measure with, not to train on: {docs.IMAGES}.", "IMAGES",
                        _OUTPUT),
    ] = None  # fmt: skip
    val_every: Annotated[
        int, Doc("Steps from one validation to the next.", "N", _OUTPUT, least=1)
    ] = 1000
    log_every: Annotated[
        int, Doc("Steps from one line of metrics.jsonl to the next.", "N", _OUTPUT, least=1)
    ] = 50
    track: Annotated[
        str | None,
        choice("Tracker that gets the metrics as well", "NAME", TRACKERS, _OUTPUT),
    ] = None
    vgg_weights: Annotated[Path | None, VGG_FILE] = None
    lpips_weights: Annotated[Path | None, LPIPS_FILE] = None
    may_download: Annotated[
        bool,
        Doc("Download no weights of metric networks.", panel="Metrics", flags=(" /--offline",)),
    ] = True
    restart: Annotated[bool, Doc("Discard the checkpoints of the run and start over.")] = False
    reading: OfOneModel = ModelOptions()
    on_progress: Callable[[str, int, int], None] | None = None
    on_record: Callable[[Mapping[str, Any]], None] | None = None

    def __post_init__(self) -> None:
        if self.precision == "fp16":
            raise UsageError(
                "precision is fp16, in which LPIPS is not finite: squares above 65504 overflow, "
                "and its 1e-10 is zero",
                hint="use --precision bf16",
            )
        check_fields(self, precision=PRECISIONS)
        has_lpips, is_adversarial = bool(self.loss.lpips), bool(self.adversarial)
        idle = "LPIPS has no weight"
        refuse_idle(
            [
                Rule("--vgg-weights", self.vgg_weights is not None, has_lpips, idle),
                Rule("--lpips-weights", self.lpips_weights is not None, has_lpips, idle),
                Rule("--adversarial-start", self.adversarial_start > 0, is_adversarial,
                     "--adversarial is 0"),
            ]
        )  # fmt: skip
        if self.compiles and is_adversarial:
            raise UsageError(
                "--compile and --adversarial do not go together: a compiled graph cannot be "
                "differentiated twice, as the adaptive weight needs",
                hint="leave one of them out",
            )

    @property
    def loss(self) -> Recipe:
        """The recipe's values, as far as options do not change them."""
        pixel, lpips = RECIPES.get(self.recipe, RECIPES["ft-ema"])
        return Recipe(self.pixel or pixel, lpips if self.lpips is None else self.lpips)

    def decisive(self) -> dict[str, Any]:
        """List the options that decide what a run computes, as plain data."""
        kept = ("recipe", "ema", "adversarial", "adversarial_start", "lr", "warmup", "clip",
                "ema_decay", "seed", "size", "crop", "flip", "posterior", "precision",
                "gradient_checkpointing", "compiles", "val_every", "log_every")  # fmt: skip
        return {**{name: getattr(self, name) for name in kept}, **self.loss._asdict()}
