"""Procedural chest CT with exact lesion masks, for trying the software out and for tests."""

from .folder import PhantomSet, write_phantoms
from .patient import PhantomSlice, phantom_patient

__all__ = ["PhantomSet", "PhantomSlice", "phantom_patient", "write_phantoms"]
