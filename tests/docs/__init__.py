"""Tests of the documentation: what its pages run and show, its notebooks, its site."""
