"""Errors as OpenAI's interface says them: a status and `{"error": {"message", "type", "param", "code"}}`."""

import json
import re

from redrafter_jax.errors import BadInput

TYPES = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refusal(Exception):
    """A request that gets an error. param: the field that is wrong; code: what is wrong, for programs; retry_after: seconds after
    which the same request may be served."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None, retry_after: int = 0):
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    @property
    def body(self) -> dict:
        usual = "server_error" if self.status >= 500 else TYPES[400]
        kind = TYPES.get(self.status, usual)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        found = {"retry-after": str(self.retry_after)} if self.retry_after else {}
        return found | ({"www-authenticate": "Bearer"} if self.status == 401 else {})

    def dump(self) -> bytes:
        """The body as ASCII, whatever is in the message: JSON can bring half a surrogate pair, which is no UTF-8."""
        return json.dumps(self.body).encode()


def of_input(error: BadInput, fields: set[str]) -> Refusal:
    """For an input that cannot be used; the field that is wrong is the one that the sentence begins with."""
    first = re.match(r"\w*", str(error)).group()
    return Refusal(400, str(error), first if first in fields else None)
