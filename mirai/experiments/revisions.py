"""What keeps keys honest over time: revisions of the stages, and options that came later."""

from __future__ import annotations

from typing import Any

# Raised when the same recipe would give other numbers; tests/test_revisions.py notices when that is forgotten.
REVISIONS = {
    "tokenizer": 1,
    "codes": 1,
    "encoder": 1,
    "features": 1,
    "reference": 1,
    "state": 1,
    "samples": 1,
    "metrics": 1,
}

# Fields added to a recipe type later, with the value that means what was done before: left out of the key at that
# value, so that a new option renames nothing. ("Model.qk_norm": False)
ADDED: dict[str, Any] = {
    "Model.token_order": "raster",
    "Head.kind": "mlp",
    "Foresight.seams": "mask",
    "TokenizerTraining.lr_schedule": "cosine",
    "TokenizerTraining.betas": (0.9, 0.99),
    "TokenizerTraining.augment": False,
    "TokenizerTraining.init": "near-linear",
    "TokenizerTraining.perceptual_weight": 0.0,
}
