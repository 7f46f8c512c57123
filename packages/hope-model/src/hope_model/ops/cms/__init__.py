"""Levels of the continuum memory system: fast forward and closed-form writes; derivation in this folder's README."""

from hope_model.ops.cms.chunk import (
    cms_bounded,
    cms_delta_rule,
    cms_gradient,
    cms_level,
    cms_written,
    fast_linear,
    mlp_backward,
)
from hope_model.ops.cms.naive import cms_delta_rule_naive, cms_gradient_naive, cms_level_naive
from hope_model.ops.cms.types import LevelWeights

__all__ = [
    "LevelWeights",
    "cms_bounded",
    "cms_delta_rule",
    "cms_delta_rule_naive",
    "cms_gradient",
    "cms_gradient_naive",
    "cms_level",
    "cms_level_naive",
    "cms_written",
    "fast_linear",
    "mlp_backward",
]
