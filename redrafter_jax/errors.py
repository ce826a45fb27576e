"""The one kind of error that the user can correct, and which errors of other libraries are of that kind."""

import errno

NO_SPACE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_SPACE_PHRASES = ("No space left on device", "Disk quota exceeded", "File too large")  # of libraries that set no errno
FILE_SYSTEM_ERRNOS = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EIO,
    errno.ENOTDIR,
    errno.EISDIR,
)
SHOWN_CHARACTERS = 60


class BadInput(ValueError):
    """An input from outside cannot be used. The message, one sentence, names it and says what would be right."""


def shown(value: object) -> str:
    """A value as an error shows it: what a person needs of it, not 400 digits."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."


def as_bad_input(error: BaseException) -> BadInput | None:
    """The sentence for an error that the machine's state explains (a full disk, a file without write permission, too
    little memory), whichever library raised it; None for any other error, which is a defect of ours."""
    link: BaseException | None = error
    while link is not None:
        found = _explain(link)
        if found is not None:
            return found
        link = link.__cause__
    return None


def _explain(error: BaseException) -> BadInput | None:
    if isinstance(error, BadInput):
        return error
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in NO_SPACE_ERRNOS or any(words in text for words in NO_SPACE_PHRASES):
        where = f"{error.filename} cannot be written: " if getattr(error, "filename", None) else ""
        return BadInput(f"{where}there is no space left on the disk; make room and start the same command again")
    if isinstance(error, OSError) and error.errno in FILE_SYSTEM_ERRNOS and error.filename is not None:
        return BadInput(f"{error.filename} cannot be used ({error.strerror})")
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text or "Out of memory" in text:
        return BadInput(f"there is too little memory for this ({text[:200] or 'none is left'}); take smaller sizes or more devices")
    return None
