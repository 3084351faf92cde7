"""Groups of duplicates and leaks, on frames: equal values, near ones, and who is linked by a chain of them."""
