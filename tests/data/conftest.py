"""The hub that tests have in place of the network's."""

import fsspec
import pytest

from data.corpora import Hub


@pytest.fixture
def hub():
    before = fsspec.get_filesystem_class("hf")
    fsspec.register_implementation("hf", Hub, clobber=True)
    Hub.store.clear()
    Hub.broken = False
    Hub.fails.clear()
    yield Hub()
    fsspec.register_implementation("hf", before, clobber=True)
    Hub.clear_instance_cache()
