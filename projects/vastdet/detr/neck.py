# SPDX-License-Identifier: Apache-2.0
"""Brings the maps of a backbone to one width, and may add coarser levels."""

from collections.abc import Mapping, Sequence

from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from vastdet.layers.conv_norm import ConvNorm


def feature_channels(
    input_shapes: Mapping[str, ShapeSpec], in_features: Sequence[str]
) -> list[int]:
    """Channels of the maps to use; ValueError for one that the backbone does not return."""
    unknown = [f for f in in_features if f not in input_shapes]
    if unknown or not in_features:
        raise ValueError(
            f"IN_FEATURES is {list(in_features)}, but the backbone returns {list(input_shapes)}; "
            "name at least one of these and no others"
        )
    return [input_shapes[f].channels for f in in_features]


class ChannelMapper(nn.Module):
    """A 1x1 convolution and GroupNorm for each map; further levels by 3x3 convolutions of stride 2.

    Zhu et al. 2021, appendix A.2. The first further level reads the deepest map of the backbone,
    the next ones the level before.
    """

    def __init__(
        self,
        input_shapes: Mapping[str, ShapeSpec],
        in_features: Sequence[str],
        *,
        embed_dim: int,
        num_levels: int,
        num_groups: int = 32,
        bias: bool = True,
    ) -> None:
        """Build the projections.

        Args:
            input_shapes: what the backbone returns.
            in_features: the maps to use, high resolution first.
            embed_dim: channels of every level.
            num_levels: levels to return, at least as many as `in_features`.
            num_groups: of the norms.
            bias: whether the convolutions have one.

        Raises:
            ValueError: a map that the backbone does not return, or too few levels.
        """
        super().__init__()
        channels = feature_channels(input_shapes, in_features)
        if num_levels < len(in_features):
            raise ValueError(
                f"NUM_LEVELS is {num_levels}, but IN_FEATURES names {len(in_features)} maps; "
                "expected at least one level for each map"
            )
        self.in_features = list(in_features)
        convs = [nn.Conv2d(c, embed_dim, 1, bias=bias) for c in channels]
        for i in range(num_levels - len(channels)):
            source = channels[-1] if i == 0 else embed_dim
            convs.append(nn.Conv2d(source, embed_dim, 3, stride=2, padding=1, bias=bias))
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(nn.GroupNorm(num_groups, embed_dim) for _ in convs)
        for conv in convs:
            nn.init.xavier_uniform_(conv.weight)
            if bias:
                nn.init.zeros_(conv.bias)

    def forward(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        """Maps (B, C_i, H_i, W_i) by name to levels (B, embed_dim, H_i, W_i)."""
        sources = [features[f] for f in self.in_features]
        sources.append(sources[-1])
        levels: list[Tensor] = []
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            source = sources[i] if i < len(sources) else levels[-1]
            levels.append(norm(conv(source)))
        return levels


class MapProjection(nn.Module):
    """A 1x1 convolution of one map, without a norm (Carion et al. 2020, section 3.2)."""

    def __init__(
        self, input_shapes: Mapping[str, ShapeSpec], in_feature: str, *, embed_dim: int
    ) -> None:
        """Build the projection.

        Args:
            input_shapes: what the backbone returns.
            in_feature: the map to use.
            embed_dim: channels of the level.

        Raises:
            ValueError: a map that the backbone does not return.
        """
        super().__init__()
        if in_feature not in input_shapes:
            raise ValueError(
                f"IN_FEATURE is {in_feature!r}, but the backbone returns {list(input_shapes)}; "
                "name one of these"
            )
        self.in_feature = in_feature
        self.conv = nn.Conv2d(input_shapes[in_feature].channels, embed_dim, 1)

    def forward(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        """Maps by name to one level (B, embed_dim, H, W)."""
        return [self.conv(features[self.in_feature])]


class ConvNormMapper(nn.Module):
    """A 1x1 convolution and BatchNorm for each map (Zhao et al. 2024, RT-DETR's code)."""

    def __init__(
        self,
        input_shapes: Mapping[str, ShapeSpec],
        in_features: Sequence[str],
        *,
        embed_dim: int,
    ) -> None:
        """Build the projections.

        Args:
            input_shapes: what the backbone returns.
            in_features: the maps to use, high resolution first.
            embed_dim: channels of every level.

        Raises:
            ValueError: a map that the backbone does not return.
        """
        super().__init__()
        channels = feature_channels(input_shapes, in_features)
        self.in_features = list(in_features)
        self.projections = nn.ModuleList(ConvNorm(c, embed_dim, 1) for c in channels)

    def forward(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        """Maps (B, C_i, H_i, W_i) by name to levels (B, embed_dim, H_i, W_i)."""
        return [
            projection(features[name])
            for name, projection in zip(self.in_features, self.projections, strict=True)
        ]
