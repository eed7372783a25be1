"""Trials on Ray Tune: checked, sent, watched, and their rows committed.

Imports explore, study, results, `cluster` and `trainable.ray_adaptor`; not report, not analysis.
"""
