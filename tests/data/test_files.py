"""Outputs appear whole or not at all."""

import errno
import json
import os

from d2_covid.data.files import atomic_write, read_json, write_csv, write_json
from d2_covid.errors import UserError

import pytest


def test_writes_text_and_bytes_and_makes_folders(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"é": [1, 2.5]})
    assert json.loads((tmp_path / "new" / "a.json").read_text(encoding="utf-8")) == {"é": [1, 2.5]}
    with atomic_write(tmp_path / "b.bin", "wb") as file:
        file.write(b"\x00\x01")
    assert (tmp_path / "b.bin").read_bytes() == b"\x00\x01"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.bin", "new"]


def test_names_that_are_no_utf8_come_through(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    write_json(tmp_path / "a.json", {name: f"é {name}"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {name: f"é {name}"}
    with atomic_write(tmp_path / "a.csv") as file:
        file.write(name)
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == "caf\\udce9"


def test_permissions_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        write_json(tmp_path / "a.json", 1)
    finally:
        os.umask(old)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o640


def test_a_failing_body_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        with atomic_write(path) as file:
            file.write("half")
            raise ZeroDivisionError
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_full_disk_is_one_line_and_leaves_no_litter(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="Cannot write .*a.json: No space left on device"):
        write_json(tmp_path / "a.json", 1)
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write .*file/a.json"):
        write_json(tmp_path / "file" / "a.json", 1)


def test_nan_never_reaches_a_json(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", float("nan"))
    assert list(tmp_path.iterdir()) == []


def test_csv_is_quoted_where_it_must_be_and_whole_or_absent(tmp_path):
    write_csv(tmp_path / "a.csv", [("file", "label"), ('a "b", c', 1), ("", None)])
    assert (tmp_path / "a.csv").read_bytes() == b'file,label\n"a ""b"", c",1\n,\n'

    def rows():
        yield ["file"]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_csv(tmp_path / "b.csv", rows())
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


def test_a_json_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(UserError, match="Cannot read .*a.json: No such file"):
        read_json(path)
    for content in (b"{", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="a.json is not json"):
            read_json(path)
    write_json(path, {"é": 1})
    assert read_json(path) == {"é": 1}
