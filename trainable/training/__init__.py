"""One update and its parts: optimizer, schedule, losses, scores, noise scale, CUDA graph.

Imports `trainable.networks`, `trainable.config` and `trainable.host`. Others use `step` (Step),
`schedule` (no torch), `metrics` (Scores, score) and `noise`.
"""
