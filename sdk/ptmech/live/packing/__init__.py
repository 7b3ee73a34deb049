"""Running many texts through a model without computing anything twice.

Texts that begin alike share those tokens: :mod:`~ptmech.live.packing.prefix_trees` lays them out as
a tree, :mod:`~ptmech.live.packing.running` runs it as one sequence in which every token attends to
its own beginning only. Where nothing is shared, or a model's attention takes no such mask, texts of
similar length are padded into batches; :mod:`~ptmech.live.packing.cost` says which is cheaper.
"""

from __future__ import annotations
