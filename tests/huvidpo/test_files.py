import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from huvidpo.errors import FolderError
from huvidpo.files import (
    hash_facts,
    hash_file,
    hash_tensors,
    make_folder,
    make_way,
    whole_file,
    whole_folder,
    write_bytes,
    write_text,
)


def test_a_written_file_is_whole_and_alone(tmp_path):
    target = tmp_path / "new" / "a.json"
    write_text(target, "ä")
    write_bytes(target.with_name("b"), b"\x00\n")
    assert target.read_bytes() == "ä".encode()
    assert {path.name for path in target.parent.iterdir()} == {"a.json", "b"}
    plain = tmp_path / "plain"
    plain.touch()
    assert target.stat().st_mode == plain.stat().st_mode


def test_a_failure_in_the_middle_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.bin"
    write_bytes(target, b"old")

    def stopped() -> None:
        with whole_file(target) as part:
            assert part.parent == target.parent  # a rename within one file system
            part.write_bytes(b"half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_that_cannot_be_replaced_leaves_nothing_behind(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        write_bytes(tmp_path / "taken", b"x")
    assert list(tmp_path.iterdir()) == [tmp_path / "taken"]


def test_two_writers_of_one_file_do_not_share_a_half(tmp_path):
    target = tmp_path / "a"
    with whole_file(target) as one, whole_file(target) as other:
        assert one != other
        one.write_bytes(b"one")
        other.write_bytes(b"other")
    assert target.read_bytes() == b"one"  # which ended last
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "engines" / "a"

    def stopped() -> None:
        with whole_folder(folder) as part:
            (part / "weights").write_bytes(b"w")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert list(folder.parent.iterdir()) == []
    with whole_folder(folder) as part:
        (part / "weights").write_bytes(b"w")
        assert not folder.exists()
    assert (folder / "weights").read_bytes() == b"w"
    with pytest.raises(OSError, match="not empty"), whole_folder(folder) as part:
        (part / "weights").write_bytes(b"later")
    assert (folder / "weights").read_bytes() == b"w"
    assert list(folder.parent.iterdir()) == [folder]


def test_hash_of_a_file_is_hashlibs(tmp_path):
    data = bytes(range(256)) * 5000
    write_bytes(tmp_path / "a", data)
    assert hash_file(tmp_path / "a") == hashlib.sha256(data).hexdigest()
    with pytest.raises(OSError, match="nothing"):
        hash_file(tmp_path / "nothing")


def test_hash_of_tensors_is_over_sorted_names_types_shapes_and_bytes():
    """The format is stored in the lineage of shipped weights and in the manifests of engines."""
    x, n = torch.arange(6.0).view(2, 3), torch.tensor([7])
    expected = hashlib.sha256()
    expected.update(b"n torch.int64 (1,)\n" + np.array([7], np.int64).tobytes())
    expected.update(b"x torch.float32 (2, 3)\n" + np.arange(6, dtype=np.float32).tobytes())
    assert hash_tensors({"x": x, "n": n}) == expected.hexdigest()
    assert hash_tensors({"n": n, "x": x.t().contiguous().t()}) == expected.hexdigest()
    assert hash_tensors({"x": x, "n": n}, "float32") == expected.hexdigest()
    half = hashlib.sha256(b"x torch.float16 (2, 3)\n" + np.arange(6, dtype=np.float16).tobytes())
    assert hash_tensors({"x": x}, "float16") == hash_tensors({"x": x.half()}) == half.hexdigest()


def test_tensors_hash_as_the_engine_sees_them():
    half = {"a": torch.randn(3, 2).half(), "n": torch.tensor([1])}
    loaded = {name: x.float() if x.is_floating_point() else x for name, x in half.items()}
    assert hash_tensors(half, "float16") == hash_tensors(loaded, "float16")
    assert hash_tensors(half, "float16") != hash_tensors(half, "float32")
    moved = half | {"a": half["a"] + 1}
    assert hash_tensors(half, "float16") != hash_tensors(moved, "float16")
    assert hash_tensors(half, "float16") != hash_tensors({"b": half["a"], "n": half["n"]}, "float16")


def test_hash_of_facts_does_not_depend_on_the_order_of_keys(tmp_path):
    facts = {"b": [1, None], "a": tmp_path}
    text = json.dumps({"a": str(tmp_path), "b": [1, None]})
    assert hash_facts(facts) == hashlib.sha256(text.encode()).hexdigest()
    assert hash_facts(["a", "b"]) != hash_facts(["b", "a"])


# Folders and disks


def test_missing_folders_are_made_and_nothing_is_left_in_them(tmp_path):
    make_way(tmp_path / "a" / "b" / "c.mp4")
    make_folder(tmp_path / "a" / "b", room=1)
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_what_cannot_be_written_to_is_said_in_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FolderError, match=r"cannot write to .*/file/x: Not a directory; .* choose another"):
        make_folder(tmp_path / "file" / "x")
    with pytest.raises(FolderError, match=r"cannot write to .*/file: File exists; it is a file"):
        make_folder(tmp_path / "file")
    with pytest.raises(FolderError, match="it is a folder; name a file"):
        make_way(tmp_path)
    if Path("/sys/kernel").is_dir():  # no file can be made there, not even by root
        with pytest.raises(FolderError, match=r"cannot write to /sys/kernel: .*; choose a folder"):
            make_folder(Path("/sys/kernel"))


def test_too_little_room_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(FolderError, match=r"MB are free, 4,611,686,018,427 MB are needed; make room"):
        make_folder(tmp_path, room=2**62)


def test_a_disk_that_fills_leaves_the_old_file_and_names_it(tmp_path, small_files):
    target = tmp_path / "a.bin"
    write_bytes(target, b"old")
    with small_files(1000), pytest.raises(OSError, match="File too large") as full:
        write_bytes(target, bytes(5000))
    assert full.value.filename == str(target)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]
