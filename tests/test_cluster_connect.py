import subprocess
import sys
from pathlib import Path

import pytest

from cluster.connect import ConnectError, connect


def test_a_ray_client_address_is_refused() -> None:
    with pytest.raises(ConnectError, match="ray:// ends the study when its connection breaks"):
        connect("ray://127.0.0.1:10001")


def test_only_one_file_starts_ray() -> None:
    done = subprocess.run(
        ["git", "grep", "-lE", r"ray\.init\(", "--", "*.py", ":!tests", ":!benchmarks"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    assert done.stdout.split() == ["cluster/connect.py"]


@pytest.mark.ray
def test_no_cluster_at_the_address_is_said_in_one_line(tmp_path: Path) -> None:
    space = Path(__file__).parent / "spaces" / "small.py"
    command = [sys.executable, "-m", "search.run", str(space), "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--address", "127.0.0.1:1"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "no Ray cluster at --address 127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
