import os

import pytest

from meedge_ray.search import native


@pytest.fixture(params=["native", "numpy"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test once with the compiled loops and once with their twins."""
    if request.param == "native" and native.kernels is None:
        why = "MEEDGE_NO_NATIVE is set" if os.environ.get("MEEDGE_NO_NATIVE") == "1" else "the extension is not built"
        pytest.skip(f"{why}: no compiled loops to test")
    if request.param == "numpy":
        monkeypatch.setattr(native, "kernels", None)
    return str(request.param)
