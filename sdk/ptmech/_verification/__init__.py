"""The parts of :mod:`ptmech.verify`: one module for each kind of thing that can be wrong."""
