"""The gated delta rule, the one recurrence under every memory; derivation in this folder's README."""

from hope_model.ops.gated_delta.kernels import gated_delta, recurrence
from hope_model.ops.gated_delta.naive import gated_delta_naive

__all__ = ["gated_delta", "gated_delta_naive", "recurrence"]
