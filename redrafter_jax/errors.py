"""The one kind of error that is the user's to mend."""


class BadInput(ValueError):
    """Something given from outside cannot be used. The message is one sentence that names it and says what would be right."""
