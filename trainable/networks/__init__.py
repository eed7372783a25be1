"""Networks by name, our own networks, normalization, the frozen prefix, teachers.

Imports `trainable.config` and `trainable.host`. Others use `models` (check_model, build_model,
set_training, ...), `prefix` and `teacher` (load_teacher, resolve_teacher, keep_weights).
"""
