"""How much memory there is: the container's word counts, where there is one."""

import psutil

from huvidpo import memory


def test_a_container_has_what_its_control_group_says(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.limit() == psutil.virtual_memory().total
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.limit() == psutil.virtual_memory().total
    (tmp_path / "memory.max").write_text("50000000\n")
    assert memory.limit() == 50_000_000
    (tmp_path / "memory.current").write_text("30000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 4000000\n")
    assert memory.available() == 24_000_000  # files that were read can be dropped
    (tmp_path / "memory.current").write_text("90000000\n")
    assert memory.available() == 0
