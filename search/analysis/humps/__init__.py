"""The model of `explore=Ridge`: a hump in log lr for each batch size, on a nearly straight ridge.

`model` is its likelihood, `sampler` draws from its posterior, `posterior` answers questions, and
`gain` says which cell to train next.
"""
