"""TPU slices that are not here: their chips, the compiler for them, and what a compiled program says of itself."""
