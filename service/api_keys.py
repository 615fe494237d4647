"""API keys: who may call, by name. Only hashes are stored; keys are compared in constant time.

    python -m service.api_keys NAME      makes a key; prints it and, for SKIPVIT_API_KEYS_FILE, the line to store

A line is `name:hash`; empty lines and those that begin with # are skipped. Several lines may share a name, so that a
key is replaced without a gap. The hash is plain SHA-256: a key that is made here has 256 random bits, which nobody
guesses, so a slow hash would only slow each request down. It knows no HTTP.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import logging
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from service.errors import SettingsError
from service.settings import Settings

logger = logging.getLogger("skipvit.api_keys")

UNKNOWN = "unknown"  # the name of who has no key, or a wrong one; no key may have it
_LINE = re.compile(r"([A-Za-z0-9._-]{1,64}):([0-9a-f]{64})")
_RANDOM_BYTES = 32
_LOOK_AGAIN_S = 1.0  # at most so long after its file has changed, a key is known or known no more

_Entries = tuple[tuple[str, bytes], ...]
_Signature = tuple[int, int, int]


class ApiKeys:
    """The known keys; those of a file are read again when it changes."""

    def __init__(self, lines: str = "", path: Path | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Read them; SettingsError if a line isn't one or if there is no key at all."""
        self._fixed = _parse(lines.replace(",", "\n").split(), "SKIPVIT_API_KEYS")
        self._path = path
        self._clock = clock
        self._signature: _Signature | None = None
        self._entries = self._fixed
        self._look_at_s = clock() + _LOOK_AGAIN_S
        if path is not None:
            self._read(path)

    def owner(self, key: str) -> str | None:
        """The name of who has this key; None if nobody."""
        if self._path is not None and self._clock() >= self._look_at_s:
            self._look_at_s = self._clock() + _LOOK_AGAIN_S
            self._refresh(self._path)
        digest = hashlib.sha256(key.encode()).digest()
        found = None
        for name, known in self._entries:  # to the end, so that time tells nothing
            if hmac.compare_digest(digest, known):
                found = name
        return found

    def _refresh(self, path: Path) -> None:
        """Read the file if it has changed; if that fails, what was known stays."""
        try:
            if _sign(path) != self._signature:
                self._read(path)
                logger.info("%s has changed: %d API keys are known", path, len(self._entries))
        except (OSError, SettingsError) as error:
            logger.error("API keys stay as they were: %s", error)

    def _read(self, path: Path) -> None:
        try:
            self._signature = _sign(path)
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"SKIPVIT_API_KEYS_FILE={path}: {error}") from error
        entries = _parse((line.strip() for line in lines), str(path))
        if not entries:
            raise SettingsError(
                f"SKIPVIT_API_KEYS_FILE={path}: no key in it; `python -m service.api_keys NAME` makes one"
            )
        self._entries = (*self._fixed, *entries)


def load_api_keys(settings: Settings) -> ApiKeys | None:
    """The keys that the settings name; None if everybody may call. SettingsError if they can't be read."""
    if not settings.asks_for_keys:
        return None
    return ApiKeys(settings.api_keys.get_secret_value(), settings.api_keys_file)


def make_key(name: str) -> tuple[str, str]:
    """A new key and the line to store for it."""
    key = f"skipvit_{secrets.token_urlsafe(_RANDOM_BYTES)}"
    return key, f"{name}:{hashlib.sha256(key.encode()).hexdigest()}"


def _sign(path: Path) -> _Signature:
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


def _parse(lines: Iterable[str], origin: str) -> _Entries:
    entries = []
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None or found[1] == UNKNOWN:  # the line isn't shown: somebody may have put the key itself there
            raise SettingsError(f"{origin}: entry {number} isn't a `name:hash` of `python -m service.api_keys NAME`")
        entries.append((found[1], bytes.fromhex(found[2])))
    return tuple(entries)


def main(argv: list[str] | None = None) -> int:
    """Make a key and print it; returns the exit code."""
    parser = argparse.ArgumentParser("python -m service.api_keys", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", help="who gets the key, as metrics and logs will call them: letters, digits, . _ -")
    name = parser.parse_args(argv).name
    key, line = make_key(name)
    try:
        _parse([line], "NAME")
    except SettingsError:
        parser.error(f"{name!r} isn't a name: 1 to 64 letters, digits, dots, dashes, underscores, and not {UNKNOWN!r}")
    print(f"key, shown only now, for the header X-API-Key: {key}", file=sys.stderr)
    print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
