"""Sizes and checksums of a checkpoint's files."""

import hashlib
from pathlib import Path

import pytest

from converters.manifest import MANIFEST, DamagedCheckpoint, check_files, file_entries, read_manifest


def test_an_entry_is_size_and_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"some bytes")
    (tmp_path / "b").write_bytes(b"")
    entries = file_entries(tmp_path, ["a", "b"])
    assert entries["a"] == {"bytes": 10, "sha256": hashlib.sha256(b"some bytes").hexdigest()}
    assert list(entries) == ["a", "b"]
    check_files(tmp_path, entries)
    (tmp_path / "a").write_bytes(b"same bytes")
    with pytest.raises(DamagedCheckpoint, match=r"/a: its SHA-256 is \w{12}"):
        check_files(tmp_path, entries)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", '{"files": []}', '{"files": {"a": 1}}', '{"files": {"a": {"bytes": "1"}}}', "[" * 9999]
)
def test_what_is_no_manifest_is_told_on_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(DamagedCheckpoint, match=rf"^{tmp_path / MANIFEST}: .*$") as raised:
        read_manifest(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_manifest_without_checksums_is_of_an_older_version(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"step": 3}')
    assert read_manifest(tmp_path) == {"step": 3}
