import os

import hypothesis
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # one process per core: threads of torch would be in each other's way
    os.environ.setdefault("OMP_NUM_THREADS", "1")

hypothesis.settings.register_profile("clbench", deadline=None)  # machines are busy, and a slow example is no fault
hypothesis.settings.load_profile("clbench")


@pytest.fixture(scope="session", autouse=True)
def data_folder(tmp_path_factory):
    """Keep what the tests cache out of the user's cache, in one folder for all their processes, unless one is named."""
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        if "CLBENCH_DATA" not in os.environ:
            folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "clbench-data"
            folder.mkdir(exist_ok=True)
            patch.setenv("CLBENCH_DATA", str(folder))
        yield
