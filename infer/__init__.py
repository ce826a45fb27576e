"""Serving text: `python -m infer.generate`, `python -m infer.benchmark`, and the engine under both."""
