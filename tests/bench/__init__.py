"""`make bench`: what the budget work costs, beside going direct and beside the same stack without it."""
