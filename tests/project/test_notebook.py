"""The notebook of docs/ is executed from its first cell to its last, in a kernel of its own."""

import pytest
from helpers import ROOT

PATH = ROOT / "docs" / "results.ipynb"


@pytest.fixture(scope="module")
def written():
    nbformat = pytest.importorskip("nbformat", reason="needs clbench[notebook]")
    return nbformat.read(PATH, as_version=4)


def outputs(cell, kind):
    return [output.data[kind] for output in cell.get("outputs", ()) if kind in output.get("data", ())]


@pytest.mark.slow
@pytest.mark.extra("notebook")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of jupyter_client and what it stands on
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_notebook_runs_and_shows_tables_lines_and_figures(written, tmp_path):
    import nbformat
    from nbclient import NotebookClient

    fresh = nbformat.from_dict(written)
    for cell in fresh.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    NotebookClient(fresh, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    cells = {cell.source.split("\n")[0]: cell for cell in fresh.cells if cell.cell_type == "code"}
    run = cells["import clbench"]
    said = "".join(output.text for output in run.outputs)
    assert {output.name for output in run.outputs} == {"stdout"}
    assert "7 methods x 3 seeds = 21 trials" in said and "[21/21] " in said
    table, = outputs(cells["results"], "text/html")
    assert "<table>" in table and "t-tests over seeds and test samples, Holm-corrected" in table
    assert "<strong>Caution:</strong>" in table
    figures = [cell for source, cell in cells.items() if source.startswith("results.plot(")]
    assert len(figures) == 4 and all(len(outputs(cell, "image/png")) == 1 for cell in figures)
    assert (tmp_path / "runs" / "notebook" / "report.html").exists()


@pytest.mark.extra("notebook")
def test_the_notebook_is_kept_as_it_was_executed(written):
    code = [cell for cell in written.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert all(output.output_type != "error" for cell in code for output in cell.outputs)
    text = PATH.read_text(encoding="utf-8")
    assert str(ROOT) not in text and "/home/" not in text and len(text) < 500_000
