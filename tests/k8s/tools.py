"""Programs that aren't Python packages: where they are missing, tests that need them are skipped, and say so."""

from __future__ import annotations

import os
import shutil

import pytest


def tool(name: str) -> str:
    """The program's path; without it the test is skipped, or fails where TEST_REQUIRE_TOOLS=1 is set."""
    found = shutil.which(name)
    if found is None and os.environ.get("TEST_REQUIRE_TOOLS") == "1":
        pytest.fail(f"{name} is not installed, and TEST_REQUIRE_TOOLS=1 wants it")
    if found is None:
        pytest.skip(f"{name} IS NOT INSTALLED: this was not tested")
    return found
