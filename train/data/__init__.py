"""From files to the batches of an update."""
