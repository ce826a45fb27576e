"""Files: configurations, weights, checkpoints, and who may write where."""
