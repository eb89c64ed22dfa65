"""The few exceptions the whole project raises. The edges (HTTP, gRPC, command line) translate them."""


class HuViDPOError(Exception):
    """Base of every error raised on purpose by this project."""


class InvalidRequest(HuViDPOError, ValueError):
    """The caller's mistake: says what came, what is allowed and what to do.

    `field` names the offending request field (None when no single field is to blame); `message` is the text.
    """

    def __init__(self, message: str, field: str | None = None):
        super().__init__(message)
        self.message = message
        self.field = field

    def __reduce__(self) -> tuple:
        return (type(self), (self.message, self.field))


class FolderError(HuViDPOError):
    """A folder that cannot be written to, or has not the room for what would be written."""


class Cancelled(HuViDPOError):
    """Every request of a batch was dropped while it was being denoised."""


class CheckpointError(HuViDPOError):
    """Weights that are missing, of another shape, or not what their file name promises."""


class NotFinite(HuViDPOError):
    """A network's answer that holds NaN or infinity, which no picture can be made of."""


class CatalogError(HuViDPOError):
    """A catalog file that cannot be read as models, categories and styles: the operator's mistake."""


class EngineError(HuViDPOError):
    """An engine that cannot be built, or that is missing, stale or foreign: its text ends in what to do."""
