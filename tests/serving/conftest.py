import pytest
from server import served

from foveate import testbed
from foveate.serving.chat import Chat
from foveate.serving.limits import Limits
from foveate.serving.menu import Menu


@pytest.fixture(scope="package")
def loaded():
    return testbed.load("cpu", "float32")


@pytest.fixture(scope="package")
def samples():
    """Questions with one picture, portrait and landscape among them."""
    return testbed.samples(["reading-dense"], limit=3)


@pytest.fixture(scope="package")
def chat(loaded):
    model, processor = loaded
    menu = Menu(["divprune:keep=0.25", "visionzip", "fastv:keep=0.5 > snapkv:keep=64"], keep=64, cap="50%,144/image")
    return Chat("testbed", model, processor, menu, Limits(new_tokens=64))


@pytest.fixture(scope="package")
def address(chat):
    with served(chat) as found:
        yield found
