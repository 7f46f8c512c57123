"""Adaptation at test time behind one interface: what a model that is only read gains from what it has just read.

    writes          its MLPs as memories (hope_model.adapt): the write rule of the CMS in a trained model
    neural_cache    next tokens of similar hidden states, interpolated (Grave et al. 2017, arXiv 1612.04426)
    unigram_cache   the same with every earlier token alike: counts of the context
    dynamic         gradient steps on all weights while reading (Krause et al. 2018, arXiv 1709.07432)
    off             no memory of the model's own is written

These are the baselines that any memory has to beat. An adaptation wraps a `CausalModel` and is one itself, so every
evaluator takes it; each sequence begins with the trained model. `tune` chooses the dials on validation text.
"""

from hope_eval.scoring.adaptation.dials import ADAPTATIONS, Adaptation, parse
from hope_eval.scoring.adaptation.wrap import wrap

__all__ = ["ADAPTATIONS", "Adaptation", "parse", "wrap"]
