from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from service.api_keys import ApiKeys, load_api_keys, main, make_key
from service.errors import SettingsError
from service.settings import Settings
from tests.fakes import FakeClock


def test_a_made_key_is_known_by_its_name_and_no_other_is() -> None:
    key, line = make_key("alice")
    other, _ = make_key("alice")
    keys = ApiKeys(line)
    assert keys.owner(key) == "alice"
    for wrong in (other, "", key[:-1], key + "x", line, line.partition(":")[2], "schl\u00fcssel"):
        assert keys.owner(wrong) is None


def test_the_stored_line_doesnt_hold_the_key_and_keys_are_never_the_same() -> None:
    made = {make_key("a")[0] for _ in range(100)}
    assert len(made) == 100
    key, line = make_key("a")
    assert key not in line
    assert line == f"a:{hashlib.sha256(key.encode()).hexdigest()}"
    assert len(key) > 43  # 256 bits as base64, at least


def test_several_keys_may_share_a_name() -> None:
    (old, old_line), (new, new_line), (bob, bob_line) = make_key("alice"), make_key("alice"), make_key("bob")
    keys = ApiKeys(f"{old_line},{new_line} {bob_line}")
    assert [keys.owner(key) for key in (old, new, bob)] == ["alice", "alice", "bob"]


@pytest.mark.parametrize("line", ["alice", "alice:secret", "alice:" + "G" * 64, "unknown:" + "0" * 64, ":" + "0" * 64])
def test_a_line_that_isnt_one_is_refused_without_being_shown(line: str) -> None:
    with pytest.raises(SettingsError) as caught:
        ApiKeys(line)
    assert "SKIPVIT_API_KEYS: entry 1" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_file_is_read_anew_when_it_changes(tmp_path: Path) -> None:
    (old, old_line), (new, new_line), clock = make_key("old"), make_key("new"), FakeClock()
    path = tmp_path / "keys"
    path.write_text(f"# who may call\n\n{old_line}\n")
    keys = ApiKeys(path=path, clock=clock)
    assert keys.owner(old) == "old"
    replacement = tmp_path / "next"
    replacement.write_text(f"{new_line}\n")
    os.replace(replacement, path)
    assert keys.owner(old) == "old"  # it isn't looked at with each request
    clock.advance(1.1)
    assert keys.owner(old) is None
    assert keys.owner(new) == "new"


@pytest.mark.parametrize("content", ["nonsense\n", "", None])
def test_what_was_known_stays_known_when_the_file_breaks(
    tmp_path: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    (key, line), clock = make_key("alice"), FakeClock()
    path = tmp_path / "keys"
    path.write_text(line)
    keys = ApiKeys(path=path, clock=clock)
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    clock.advance(1.1)
    assert keys.owner(key) == "alice"
    assert "stay as they were" in caplog.text


@pytest.mark.parametrize("content", [None, "", "# nobody\n", "alice:abc"])
def test_a_file_without_a_key_is_refused_at_the_start(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingsError, match=r"keys"):
        load_api_keys(Settings(api_keys_file=path))


def test_without_settings_everybody_may_call() -> None:
    assert load_api_keys(Settings()) is None


def test_the_command_prints_a_line_that_knows_the_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["alice"]) == 0
    printed = capsys.readouterr()
    assert ApiKeys(printed.out).owner(printed.err.split()[-1]) == "alice"


@pytest.mark.parametrize("name", ["a b", "a:b", "", "unknown", "x" * 65])
def test_the_command_refuses_a_bad_name(name: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name])
    assert caught.value.code == 2
