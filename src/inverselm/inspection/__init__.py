"""A local web page on which a person looks at token rewards: `inverselm inspect`."""

from .app import create_app
from .inspector import Definition, Inspector, Reading
from .rows import RowFile

__all__ = ["Definition", "Inspector", "Reading", "RowFile", "create_app"]
