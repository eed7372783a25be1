"""Image data: files of several layouts to batches on the device.

Imports `trainable.config` and `trainable.host`. Others use `cache` (open_data, locate, Dataset,
EMBEDDED), `sources` (DataError) and, inside a trial, `batches`. `images` decodes files, `groups`
and `splits` make validation, and the other files read one layout each: only `cache` uses them.
"""
