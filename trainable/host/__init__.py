"""The machine: its device, its files, and what looks like a secret. Imports nothing of ours."""
