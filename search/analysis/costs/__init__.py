"""What a target score costs at each batch size, and the critical batch size."""
