"""The notebook runs from top to bottom on a small converted checkpoint."""

import json
import pathlib

import matplotlib
import numpy as np
import pytest

from convert.checkpoints import write_olmo2
from ratjax.config.presets import preset
from ratjax.convert import convert, plan

NOTEBOOK = pathlib.Path(__file__).parents[2] / "notebooks" / "inspect_checkpoint.ipynb"


def converted(place, choice):
    """A model folder."""
    source = write_olmo2(place / "hf", preset("tiny"))
    convert(place / "model", plan(str(source), add_memory=choice, memory_bias=-3.0))
    return place / "model"


@pytest.mark.parametrize("choice", ["near_identity", "identity", None], ids=str)
def test_every_cell_runs(choice, tmp_path, monkeypatch, capsys):
    """In this process, without Jupyter; the last expression of a cell is shown by it alone."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    monkeypatch.setenv("CHECKPOINT", str(converted(tmp_path, choice)))
    monkeypatch.setattr(plt, "show", lambda: None)
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(not cell.get("outputs") for cell in cells), "commit the notebook without outputs"
    space = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), str(NOTEBOOK), "exec"), space)
    assert "blocks/attention/w_q" in capsys.readouterr().out
    if choice is None:
        assert space["lengths"] is None
        assert list(space["weights"]) == ["attention"]
    else:
        expected = {"near_identity": 1 + np.exp(-3.0), "identity": 1.0}[choice]
        np.testing.assert_allclose(space["lengths"], np.full((2, 2), expected), rtol=1e-5)
        difference = np.abs(
            space["weights"]["with memory"] - space["weights"]["without memory"]
        ).max()
        assert (difference == 0) == (choice == "identity")
    plt.close("all")


@pytest.mark.notebook
def test_in_jupyter(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("CHECKPOINT", str(converted(tmp_path, "near_identity")))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    shown = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    kinds = {kind for out in shown for kind in out.get("data", {})}
    assert {"text/html", "image/png"} <= kinds
