"""The key table: every tensor of a KL autoencoder, in both layouts, on one page.

A :class:`Rule` names a module in both layouts with placeholders; ``{i}`` is the level, ``{j}``
the block in it, and ``{r}`` the level counted from the other end, because diffusers numbers the
decoder's levels from coarse to fine. A rule's leaves name the modules inside it. Expanded over a
topology the table gives concrete :class:`NamePair` rows, which are looked up as whole names.

Sources: ``ldm/modules/diffusionmodules/model.py`` (CompVis latent-diffusion) and
``diffusers.models.autoencoders``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from vaeconv.autoencoder.topology import Layout, Topology

Shape = tuple[int, ...]


class Leaf(NamedTuple):
    """A module inside a block.

    Attributes:
        compvis: Its name in the CompVis layout.
        diffusers: Its name in the diffusers layout.
        kind: ``norm``, ``conv3``, ``conv1``; gives its shapes.
        is_squeezed: Whether diffusers has a 1x1 convolution of CompVis as a linear layer.
        ends: Which widths it has: ``ii``, ``io`` or ``oo`` for input and output of the block.
        alias: An older diffusers name; accepted when reading.
        only_where_widths_differ: Whether it exists only where the block changes the width.
    """

    compvis: str
    diffusers: str
    kind: str
    is_squeezed: bool = False
    ends: str = "oo"
    alias: str = ""
    only_where_widths_differ: bool = False


RESNET = (
    Leaf("norm1", "norm1", "norm", ends="ii"),
    Leaf("conv1", "conv1", "conv3", ends="io"),
    Leaf("norm2", "norm2", "norm"),
    Leaf("conv2", "conv2", "conv3"),
    Leaf("nin_shortcut", "conv_shortcut", "conv1", ends="io", only_where_widths_differ=True),
)
# The aliases are diffusers' names before 0.17.
ATTENTION = (
    Leaf("norm", "group_norm", "norm"),
    Leaf("q", "to_q", "conv1", is_squeezed=True, alias="query"),
    Leaf("k", "to_k", "conv1", is_squeezed=True, alias="key"),
    Leaf("v", "to_v", "conv1", is_squeezed=True, alias="value"),
    Leaf("proj_out", "to_out.0", "conv1", is_squeezed=True, alias="proj_attn"),
)
NORM = (Leaf("", "", "norm"),)
CONV3 = (Leaf("", "", "conv3", ends="io"),)
CONV1 = (Leaf("", "", "conv1", ends="io"),)


class Rule(NamedTuple):
    """One row of the table: a module, or one per level and block.

    Attributes:
        compvis: CompVis name with placeholders.
        diffusers: Diffusers name with placeholders.
        places: Yields ``(level, block, input width, output width)`` wherever it exists.
        leaves: The modules in it.
    """

    compvis: str
    diffusers: str
    places: Callable[[Topology], Iterator[tuple[int, int, int, int]]]
    leaves: tuple[Leaf, ...]

    def stem(self, layout: Layout, topology_levels: int, i: int, j: int) -> str:
        """Spell the module's name in a layout."""
        template = self.compvis if layout is Layout.COMPVIS else self.diffusers
        return template.format(i=i, j=j, r=topology_levels - 1 - i)


class NamePair(NamedTuple):
    """One tensor in both layouts.

    Attributes:
        compvis: CompVis name.
        diffusers: Diffusers name.
        compvis_shape: Its shape in the CompVis layout.
        is_squeezed: Whether diffusers leaves out the last two dimensions, which are 1.
        legacy: The name that diffusers used before 0.17.
    """

    compvis: str
    diffusers: str
    compvis_shape: Shape
    is_squeezed: bool
    legacy: str

    def name(self, layout: Layout, *, legacy: bool = False) -> str:
        """The name in a layout."""
        if layout is Layout.COMPVIS:
            return self.compvis
        return self.legacy if legacy else self.diffusers

    def shape(self, layout: Layout) -> Shape:
        """The shape in a layout."""
        is_short = self.is_squeezed and layout is Layout.DIFFUSERS
        return self.compvis_shape[:2] if is_short else self.compvis_shape

    def accepts(self, shape: Shape) -> bool:
        """Tell if a source tensor of this shape can be this one.

        Attention weights occur with two, three and four dimensions in either layout.
        """
        if self.is_squeezed:
            return shape[:2] == self.compvis_shape[:2] and set(shape[2:]) <= {1} and len(shape) < 5
        return shape == self.compvis_shape


def _once(
    widths: Callable[[Topology], tuple[int, int]],
    exists: Callable[[Topology], bool] = lambda t: True,
) -> Callable[[Topology], Iterator[tuple[int, int, int, int]]]:
    def places(topology: Topology) -> Iterator[tuple[int, int, int, int]]:
        if exists(topology):
            yield (0, 0, *widths(topology))

    return places


def _down_blocks(t: Topology) -> Iterator[tuple[int, int, int, int]]:
    for i, width in enumerate(t.channels):
        before = t.channels[max(i - 1, 0)]
        for j in range(t.layers_per_block):
            yield i, j, before if j == 0 else width, width


def _up_blocks(t: Topology) -> Iterator[tuple[int, int, int, int]]:
    for i, width in enumerate(t.channels):
        before = t.channels[min(i + 1, t.levels - 1)]
        for j in range(t.layers_per_block + 1):
            yield i, j, before if j == 0 else width, width


def _down_attention(t: Topology) -> Iterator[tuple[int, int, int, int]]:
    return ((i, j, w, w) for i, j, _, w in _down_blocks(t) if t.encoder_attention[i])


def _up_attention(t: Topology) -> Iterator[tuple[int, int, int, int]]:
    return ((i, j, w, w) for i, j, _, w in _up_blocks(t) if t.decoder_attention[i])


def _downsamplers(t: Topology) -> Iterator[tuple[int, int, int, int]]:
    return ((i, 0, w, w) for i, w in enumerate(t.channels[:-1]))


def _upsamplers(t: Topology) -> Iterator[tuple[int, int, int, int]]:
    return ((i, 0, w, w) for i, w in enumerate(t.channels) if i)


_mid = _once(lambda t: (t.channels[-1], t.channels[-1]))
_mid_attention = _once(lambda t: (t.channels[-1], t.channels[-1]), lambda t: t.mid_attention)

# fmt: off
RULES: tuple[Rule, ...] = (
    Rule("encoder.conv_in", "encoder.conv_in", _once(lambda t: (t.in_channels, t.channels[0])), CONV3),
    Rule("encoder.down.{i}.block.{j}", "encoder.down_blocks.{i}.resnets.{j}", _down_blocks, RESNET),
    Rule("encoder.down.{i}.attn.{j}", "encoder.down_blocks.{i}.attentions.{j}", _down_attention, ATTENTION),
    Rule("encoder.down.{i}.downsample.conv", "encoder.down_blocks.{i}.downsamplers.0.conv", _downsamplers, CONV3),
    Rule("encoder.mid.block_1", "encoder.mid_block.resnets.0", _mid, RESNET),
    Rule("encoder.mid.attn_1", "encoder.mid_block.attentions.0", _mid_attention, ATTENTION),
    Rule("encoder.mid.block_2", "encoder.mid_block.resnets.1", _mid, RESNET),
    Rule("encoder.norm_out", "encoder.conv_norm_out", _mid, NORM),
    Rule("encoder.conv_out", "encoder.conv_out", _once(lambda t: (t.channels[-1], 2 * t.latent_channels)), CONV3),
    Rule("quant_conv", "quant_conv", _once(lambda t: (2 * t.latent_channels,) * 2, lambda t: t.quant_conv), CONV1),
    Rule("post_quant_conv", "post_quant_conv", _once(lambda t: (t.latent_channels,) * 2, lambda t: t.post_quant_conv), CONV1),
    Rule("decoder.conv_in", "decoder.conv_in", _once(lambda t: (t.latent_channels, t.channels[-1])), CONV3),
    Rule("decoder.mid.block_1", "decoder.mid_block.resnets.0", _mid, RESNET),
    Rule("decoder.mid.attn_1", "decoder.mid_block.attentions.0", _mid_attention, ATTENTION),
    Rule("decoder.mid.block_2", "decoder.mid_block.resnets.1", _mid, RESNET),
    Rule("decoder.up.{i}.block.{j}", "decoder.up_blocks.{r}.resnets.{j}", _up_blocks, RESNET),
    Rule("decoder.up.{i}.attn.{j}", "decoder.up_blocks.{r}.attentions.{j}", _up_attention, ATTENTION),
    Rule("decoder.up.{i}.upsample.conv", "decoder.up_blocks.{r}.upsamplers.0.conv", _upsamplers, CONV3),
    Rule("decoder.norm_out", "decoder.conv_norm_out", _once(lambda t: (t.channels[0],) * 2), NORM),
    Rule("decoder.conv_out", "decoder.conv_out", _once(lambda t: (t.channels[0], t.out_channels)), CONV3),
)
# fmt: on


def expand_rules(topology: Topology) -> tuple[NamePair, ...]:
    """List every tensor of an autoencoder, in both layouts, in the table's order."""
    return tuple(
        pair
        for rule in RULES
        for i, j, width_in, width_out in rule.places(topology)
        for leaf in rule.leaves
        if width_in != width_out or not leaf.only_where_widths_differ
        for pair in _expand_leaf(rule, leaf, topology.levels, (i, j), (width_in, width_out))
    )


_KERNELS = {"conv3": (3, 3), "conv1": (1, 1)}


def _expand_leaf(
    rule: Rule, leaf: Leaf, levels: int, place: tuple[int, int], widths: tuple[int, int]
) -> Iterator[NamePair]:
    compvis = _join(rule.stem(Layout.COMPVIS, levels, *place), leaf.compvis)
    stem = rule.stem(Layout.DIFFUSERS, levels, *place)
    diffusers = _join(stem, leaf.diffusers)
    legacy = _join(stem, leaf.alias or leaf.diffusers)
    width_in = widths[0] if leaf.ends[0] == "i" else widths[1]
    width_out = widths[0] if leaf.ends[1] == "i" else widths[1]
    bias = (width_out,)
    weight = bias if leaf.kind == "norm" else (width_out, width_in, *_KERNELS[leaf.kind])
    for end, shape, is_squeezed in ((".weight", weight, leaf.is_squeezed), (".bias", bias, False)):
        yield NamePair(compvis + end, diffusers + end, shape, is_squeezed, legacy + end)


def _join(stem: str, leaf: str) -> str:
    return f"{stem}.{leaf}" if leaf else stem


@dataclass(frozen=True, slots=True)
class NameMap:
    """The pairs of one topology, checked to be one to one, with look-up by whole name."""

    pairs: tuple[NamePair, ...]
    _by_name: dict[Layout, dict[str, NamePair]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        compvis = {pair.compvis: pair for pair in self.pairs}
        diffusers = {pair.diffusers: pair for pair in self.pairs}
        if not len(self.pairs) == len(compvis) == len(diffusers):
            raise ValueError("the key table is not one to one")
        # Old names are read, never part of the bijection.
        legacy = {pair.legacy: pair for pair in self.pairs}
        by_name = {Layout.COMPVIS: compvis, Layout.DIFFUSERS: {**legacy, **diffusers}}
        object.__setattr__(self, "_by_name", by_name)

    def find(self, layout: Layout, name: str) -> NamePair | None:
        """Look a tensor name up."""
        return self._by_name[layout].get(name)
