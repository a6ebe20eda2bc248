"""Imported once by the server that forks ranks: it then knows what `nursery` has its jobs know."""

from tests.support.nursery import import_all

import_all()
