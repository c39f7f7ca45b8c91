import pytest

from edge_sdk.engine.library import load_library
from edge_sdk.errors import MissingExtra

from ...conftest import lacking


@pytest.fixture(scope="session")
def rtx():
    """TensorRT for RTX, which builds engines without a GPU."""
    try:
        return load_library("tensorrt_rtx")
    except MissingExtra as error:
        lacking(str(error))
