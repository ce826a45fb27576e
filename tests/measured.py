"""A file of settings with made-up measurements."""

import pathlib

from infer import settings
from infer.settings import Choice, Conditions, Entry, Machine, SettingsFile

HERE = Machine("CPU some, 2 cores", "1x1", "float32", "0.1.0", "0.10.2")
CHOICE = Choice(2, 3, 0, 10, 1.2, 2.1, 120.0, 100.0)
ENTRY = Entry(HERE, "t", "h", "/heads/h", Conditions(4, 128), CHOICE)


def keep(folder: pathlib.Path, *entries: Entry) -> SettingsFile:
    """Writes entries; returns the file as a command reads it that was told to."""
    path = folder / "settings.json"
    settings.write(path, settings.add({"entries": []}, path, "", entries))
    return SettingsFile(path, True)
