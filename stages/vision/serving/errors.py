"""Errors that become an HTTP response: a status and one sentence."""


class RequestError(Exception):
    """A request that cannot be answered.

    Attributes:
        status: of the HTTP response.
        message: one sentence for the client, the value of `error` in the JSON body.
    """

    def __init__(self, status: int, message: str) -> None:
        """Make the error of a response with this status."""
        super().__init__(message)
        self.status = status
        self.message = message


class OverloadedError(RequestError):
    """The server has too much to do. The response is 503 with a `Retry-After` header."""

    def __init__(self) -> None:
        """Make the error."""
        super().__init__(503, "The server is busy; send the request again in a second.")
