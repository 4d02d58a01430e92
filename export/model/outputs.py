"""The names of a model's outputs. Imported where torch is not installed."""

PROBABILITIES, LOGITS, HEATMAP, OOD = "probabilities", "logits", "heatmap", "ood"
CORE_OUTPUTS = (PROBABILITIES, LOGITS)
