"""Learning rates: the best of each batch size, how it scales, which are stable."""
