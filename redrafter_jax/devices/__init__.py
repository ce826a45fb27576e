"""Devices: meshes, what fits on them, and several processes as one program."""
