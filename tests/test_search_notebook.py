"""docs/first_study.ipynb, run as a reader would."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "docs" / "first_study.ipynb"


@pytest.mark.ray
def test_the_notebook_runs_and_shows_surface_ridge_and_conclusions(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:  # fewer images, or it would take a minute
        cell.source = cell.source.replace('"train_images": 1024', '"train_images": 256')
    NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(tmp_path)}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = {cell.source.splitlines()[-1]: cell.outputs for cell in code}
    shown = outputs["results = run_study(study, preview=True)"]
    html = "".join(out.get("text", "") + out.get("data", {}).get("text/html", "") for out in shown)
    printed = re.sub("<[^>]+>", "", html)
    assert "dataset=synthetic" in printed
    assert "[24/24]" in printed
    for chart in ("heat_map(analysis)", "ridge_chart(analysis)"):
        assert any("image/png" in out.get("data", {}) for out in outputs[chart])
    (sentences,) = outputs['    print("-", sentence)']
    assert sentences["text"].startswith("- ")
    assert (tmp_path / "results" / "first_study" / "report.html").is_file()
