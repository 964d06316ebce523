import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def data_folder(tmp_path_factory):
    """Keep what the tests cache out of the user's cache, in one folder for the session, unless one is named."""
    with pytest.MonkeyPatch.context() as patch:
        if "CLBENCH_DATA" not in os.environ:
            patch.setenv("CLBENCH_DATA", str(tmp_path_factory.mktemp("clbench-data")))
        yield
