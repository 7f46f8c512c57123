"""A memory for models that are already trained: their MLPs become fast weights, written while they read.

    with attach_memory(model, periods=32, scale=0.3) as memory:
        logits, state = memory(tokens)  # or model(...), model.generate(...)

The write rule is the CMS's (arXiv 2512.24695, eq. 71; hope_model/ops/cms/README.md), put into the down projections
of a model that never saw a write in training: ad-hoc level stacking (section 7.3). Without a write it is the trained
model.
"""

from hope_model.adapt.attach import AttachedMemory, attach_memory
from hope_model.adapt.memory import AttachedLayer, AttachedState, Ladder, metrics
from hope_model.adapt.saved import load_memory, save_memory
from hope_model.adapt.targets import Rule

__all__ = [
    "AttachedLayer",
    "AttachedMemory",
    "AttachedState",
    "Ladder",
    "Rule",
    "attach_memory",
    "load_memory",
    "metrics",
    "save_memory",
]
