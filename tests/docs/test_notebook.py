"""docs/tour.ipynb runs from top to bottom, and is kept without its outputs."""

import copy
import math
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

from lgq_hf import LGQConfig, default_checkpoint
from tests.docs.pages import ROOT, links_of

NOTEBOOK = ROOT / "docs" / "tour.ipynb"


@pytest.fixture(scope="module")
def notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_kept_without_outputs(notebook: Any) -> None:
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and not any(cell.outputs or cell.execution_count for cell in code)
    assert "pip install" in code[0].source.splitlines()[1]  # where it is opened without the package
    links = [link for cell in notebook.cells if cell.cell_type == "markdown" for link in links_of(cell.source)]
    assert links and [link for link in links if not (NOTEBOOK.parent / link).exists()] == []


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(notebook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where the notebook makes a folder
    ran = nbclient.NotebookClient(
        copy.deepcopy(notebook),
        timeout=1200,
        startup_timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    code = [cell for cell in ran.cells if cell.cell_type == "code"]
    pictures = [output for cell in code for output in cell.outputs if "image/png" in output.get("data", {})]
    printed = "".join(output.text for cell in code for output in cell.outputs if output.output_type == "stream")
    assert len(pictures) == 5
    codes = LGQConfig.from_pretrained(default_checkpoint()).codebook_size
    bits = (f"{grid * math.log2(codes):.0f} bits" for grid in (20 * 20, 10 * 10))
    for expected in (f"{codes} codes", "torch.Size([20, 20])", "codes_used", *bits):
        assert expected in printed
    assert len(list(tmp_path.glob("*/*.png"))) == 4  # the folder that was tokenized
