"""The machine's own Chromium, driven by Playwright, whose own browsers are never downloaded."""

from __future__ import annotations

import shutil

_NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_chromium() -> str | None:
    """The path of the browser, or None if there is none: `tests/tools.sh` installs it."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)
