"""The networks: by name, our own, normalization, the frozen prefix, teachers."""
