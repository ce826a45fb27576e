"""The two networks, the frozen target and the recurrent draft head, and the cache between them."""
