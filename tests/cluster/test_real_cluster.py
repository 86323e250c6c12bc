"""The tests' own cluster: starting it harms nobody else."""

import os
import subprocess
import sys
from pathlib import Path

from tests.cluster.real_cluster import forget_ended


def test_only_a_component_s_own_process_is_remembered(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as running:
        for name in ("etcd", "kubelet"):
            (tmp_path / f"{name}.pid").write_text(str(running.pid))
        # As a cluster of yesterday left it; the pid is another's today.
        os.utime(tmp_path / "kubelet.pid", (0, 0))
        (tmp_path / "proxy.pid").write_text("")
        forget_ended(tmp_path)
        assert sorted(file.stem for file in tmp_path.iterdir()) == ["etcd", "proxy"]
        running.communicate(b"\n")
