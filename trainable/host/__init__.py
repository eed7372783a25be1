"""The machine: the device and its memory, folders on disks and in object stores, secrets, errors.

Imports nothing from the project. Others use every file; only `device` imports torch.
"""
