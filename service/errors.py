"""What can go wrong in the service, as one tree. It knows no HTTP: `error_handlers.py` maps it to status codes.

ServiceError
├── SettingsError           a setting that can't be used, found after its value was checked
├── BundleError             a model bundle is missing, broken or of a schema this version doesn't read
├── UnknownModel            no such model is served
├── NotAllowed              an operator's call that the settings don't allow
├── BadRequest              the body is empty or malformed
├── BadParameter            a parameter's value is outside what it takes
├── BadImage                bytes of a type we take that can't be decoded
├── UnsupportedImageType    not an image type we take
├── TooLarge                too many bytes, pixels or parts
├── Overloaded              the queue is full (`retry_after_s`)
├── NotReady                starting or draining
├── Unauthorized            no API key, or one that isn't known
├── HeadersTooLarge         a request's header has too many bytes
├── DeadlinePassed          the deadline passed before the answer was there
└── InferenceFailed         the engine failed on this very row
"""

from __future__ import annotations


class ServiceError(Exception):
    """Anything the service reports by name; `str(error)` is fit for a client to read."""


class SettingsError(ServiceError):
    """A setting that can't be used: a file it names, an extra it needs; the message names it and the mend."""


class BundleError(ServiceError):
    """A model bundle that can't be served; the message names the file and the mend."""


class UnknownModel(ServiceError):
    """The named model isn't served here."""


class NotAllowed(ServiceError):
    """An operator's call that the settings don't allow; the message names the setting."""


class BadRequest(ServiceError):
    """A body whose form is malformed: no multipart, no part named `image`."""


class BadParameter(ServiceError):
    """A parameter whose value is outside what it takes; the message names both."""


class BadImage(ServiceError):
    """No bytes at all, or bytes that claim to be an image but can't be decoded."""


class UnsupportedImageType(ServiceError):
    """Bytes that are no JPEG, PNG or WebP."""


class TooLarge(ServiceError):
    """Too many bytes, pixels or parts."""


class Overloaded(ServiceError):
    """The queue is full; try again after `retry_after_s` seconds."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotReady(ServiceError):
    """The service is starting or draining."""


class DeadlinePassed(ServiceError):
    """The request's deadline passed before its answer was there."""


class InferenceFailed(ServiceError):
    """The engine failed on this row, alone, too."""


class Unauthorized(ServiceError):
    """The request has no API key, or one that isn't known; the message doesn't tell which keys are."""


class HeadersTooLarge(ServiceError):
    """The names and values of a request's header fields have too many bytes together."""
