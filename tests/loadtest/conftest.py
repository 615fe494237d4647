"""Images that a toy server can tell apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.loadtest.servers import image_folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes, three images each."""
    return image_folder(tmp_path_factory.mktemp("images"))
