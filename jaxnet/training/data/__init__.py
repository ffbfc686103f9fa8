"""Data sets by name, from files, or from your own code: `load` gives a checked `Dataset`, or raises `DataError`."""

from jaxnet.training.data.dataset import DataError, Dataset, Split
from jaxnet.training.data.download import cache_folder, fetch
from jaxnet.training.data.idx import read_idx
from jaxnet.training.data.own import import_object
from jaxnet.training.data.sources import load

__all__ = ["DataError", "Dataset", "Split", "cache_folder", "fetch", "import_object", "load", "read_idx"]
