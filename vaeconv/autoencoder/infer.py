"""From tensor names and shapes to the topology; no config, no resolution arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vaeconv.autoencoder.keys import RULES, Leaf, Shape
from vaeconv.autoencoder.topology import Layout, Topology
from vaeconv.autoencoder.unsupported import refuse
from vaeconv.errors import UnmappedKeysError, UnsupportedModelError

# Published autoencoders have at most 6 levels and 4 blocks; an index beyond these is not one.
_MAX_LEVELS = 16
_MAX_BLOCKS = 64
_MAX_DEPTH = 16  # dots in a name; the autoencoder's own have at most 7

_RULE = {rule.compvis: rule for rule in RULES}
_DOWN, _UP = "encoder.down.{i}.block.{j}", "decoder.up.{i}.block.{j}"
_DOWN_ATTENTION, _UP_ATTENTION = "encoder.down.{i}.attn.{j}", "decoder.up.{i}.attn.{j}"
_DOWNSAMPLE, _UPSAMPLE = "encoder.down.{i}.downsample.conv", "decoder.up.{i}.upsample.conv"

_MARKERS = {
    Layout.COMPVIS: ("encoder.down.", "decoder.up.", "encoder.mid.", "decoder.mid."),
    Layout.DIFFUSERS: (
        "encoder.down_blocks.", "decoder.up_blocks.", "encoder.mid_block.", "decoder.mid_block.",
    ),
}  # fmt: skip


def detect_layout(shapes: Mapping[str, Shape], where: str) -> Layout:
    """Tell the layout by the names.

    Raises:
        UnsupportedModelError: Names of both layouts, or of neither, occur.
    """
    found = [
        layout
        for layout, markers in _MARKERS.items()
        if any(name.startswith(markers) for name in shapes)
    ]
    if len(found) == 1:
        return found[0]
    raise UnsupportedModelError(
        "the autoencoder has names of both layouts, CompVis and diffusers"
        if found
        else "no autoencoder in a known layout: it has neither encoder.down.* (CompVis) "
        "nor encoder.down_blocks.* (diffusers)",
        where=where,
    )


def infer_topology(shapes: Mapping[str, Shape], layout: Layout, where: str) -> Topology:
    """Infer the architecture from names and shapes.

    What is contradictory or absent in single tensors is left to the accounting that follows;
    this refuses what no topology can express.

    Args:
        shapes: Tensor name, without prefix, to shape.
        layout: The naming.
        where: The file, for messages.

    Raises:
        UnsupportedModelError: AutoencoderKL cannot express it.
        UnmappedKeysError: A tensor that decides a number is missing.
    """
    return _Inference(shapes, layout, where).topology()


class _Inference:
    def __init__(self, shapes: Mapping[str, Shape], layout: Layout, where: str) -> None:
        self.shapes = shapes
        self.layout = layout
        self.where = where
        self.modules = {
            name[:at]
            for name in shapes
            if name.count(".") <= _MAX_DEPTH
            for at, char in enumerate(name)
            if char == "."
        }
        self.levels = self._count_levels()

    def topology(self) -> Topology:
        layers = self._layers_per_block()
        channels = tuple(self._width(level) for level in range(self.levels))
        latent = self._latent_channels()
        self._check_resampling()
        self._check_ends(channels)
        return Topology(
            in_channels=self._dim("encoder.conv_in", 1),
            out_channels=self._dim("decoder.conv_out", 0),
            channels=channels,
            layers_per_block=layers,
            latent_channels=latent,
            encoder_attention=self._attention(_DOWN_ATTENTION),
            decoder_attention=self._attention(_UP_ATTENTION),
            mid_attention=self._has("encoder.mid.attn_1") or self._has("decoder.mid.attn_1"),
            quant_conv="quant_conv" in self.modules,
            post_quant_conv="post_quant_conv" in self.modules,
        )

    def _stem(self, rule: str, i: int = 0, j: int = 0) -> str:
        return _RULE[rule].stem(self.layout, self.levels, i, j)

    def _has(self, rule: str, i: int = 0) -> bool:
        """Whether any block of a rule exists on a level."""
        return self._stem(rule, i) in self.modules

    def _attention(self, rule: str) -> tuple[bool, ...]:
        return tuple(self._has(rule, level) for level in range(self.levels))

    def _weight(self, rule: str, leaf: Leaf | None = None, i: int = 0) -> Shape | None:
        stem = self._stem(rule, i)
        if leaf is not None:
            stem += "." + (leaf.compvis if self.layout is Layout.COMPVIS else leaf.diffusers)
        return self.shapes.get(stem + ".weight")

    def _dim(self, rule: str, axis: int) -> int:
        shape = self._weight(rule)
        if shape is None:
            half = self._stem(rule).partition(".")[0]
            if half in ("encoder", "decoder") and not any(
                name.startswith(f"{half}.") for name in self.shapes
            ):
                raise UnmappedKeysError(missing=[f"all of {half}.*"], where=self.where)
            raise UnmappedKeysError(missing=[self._stem(rule) + ".weight"], where=self.where)
        if len(shape) <= axis or shape[axis] < 1:
            raise UnmappedKeysError(
                misshaped=[f"{self._stem(rule)}.weight {list(shape)}"], where=self.where
            )
        return shape[axis]

    def _indices(self, parent: str) -> Iterator[int]:
        start = len(parent) + 1
        for module in self.modules:
            if module.startswith(parent + ".") and module[start:].isdecimal():
                digits = module[start:]
                if len(digits) < 4 and str(int(digits)) == digits:
                    yield int(digits)

    def _count_levels(self) -> int:
        sides = (
            ("encoder.down", "decoder.up")
            if self.layout is Layout.COMPVIS
            else ("encoder.down_blocks", "decoder.up_blocks")
        )
        levels = 1 + max((i for side in sides for i in self._indices(side)), default=-1)
        if not 0 < levels <= _MAX_LEVELS:
            raise UnsupportedModelError(
                f"an autoencoder with {levels} levels; 1 to {_MAX_LEVELS} are possible",
                where=self.where,
            )
        return levels

    def _layers_per_block(self) -> int:
        down, up = (
            1 + max((j for i in range(self.levels)
                     for j in self._indices(self._stem(rule, i).rpartition(".")[0])), default=-1)
            for rule in (_DOWN, _UP)
        )  # fmt: skip
        if (down and up and up != down + 1) or max(down, up) > _MAX_BLOCKS:
            raise refuse(
                f"an autoencoder with {down} resnet blocks per encoder level and {up} per decoder "
                "level",
                "a decoder level has exactly one more",
                self.where,
            )
        return down or up - 1

    def _width(self, level: int) -> int:
        """Width of a level, from whichever side has it; both must agree."""
        found: dict[str, int] = {}
        for rule in (_DOWN, _UP):
            for leaf in _RULE[rule].leaves[1:4]:  # conv1, norm2 and conv2 end in the level's width
                shape = self._weight(rule, leaf, level)
                if shape and shape[0] > 0:
                    found.setdefault(rule, shape[0])
        if not found:
            raise UnmappedKeysError(
                missing=[self._stem(_DOWN, level) + ".conv1.weight"], where=self.where
            )
        if len(set(found.values())) > 1:
            raise refuse(
                "an asymmetric autoencoder (AsymmetricAutoencoderKL, or a narrower decoder)",
                f"level {level} has {found[_DOWN]} channels in the encoder and {found[_UP]} "
                "in the decoder",
                self.where,
            )
        return next(iter(found.values()))

    def _latent_channels(self) -> int:
        latent = self._dim("decoder.conv_in", 1)
        moments = self._dim("encoder.conv_out", 0)
        if moments == latent:
            raise refuse(
                "a VQ model, or one without a posterior (double_z: false)",
                f"its encoder gives {moments} channels where mean and variance of {latent} "
                f"need {2 * latent}",
                self.where,
            )
        post_quant = self._weight("post_quant_conv")
        if post_quant and len(post_quant) == 4 and post_quant[1] != latent:
            raise refuse(
                f"an autoencoder with embed_dim {post_quant[1]} and z_channels {latent}",
                "diffusers' quant convolutions keep the number of channels",
                self.where,
            )
        return latent

    def _check_resampling(self) -> None:
        resampled = any(
            self._has(rule, level)
            for rule in (_DOWNSAMPLE, _UPSAMPLE)
            for level in range(self.levels)
        )
        if self.levels > 1 and not resampled:
            raise refuse(
                "an autoencoder without resampling convolutions (resamp_with_conv: false)",
                "diffusers always has them",
                self.where,
            )

    def _check_ends(self, channels: tuple[int, ...]) -> None:
        first = self._dim("encoder.conv_in", 0)
        if first != channels[0]:
            raise refuse(
                f"an autoencoder whose ch_mult does not begin with 1 ({first} channels after the "
                f"first convolution, {channels[0]} in the first level)",
                "diffusers has no field for that",
                self.where,
            )
