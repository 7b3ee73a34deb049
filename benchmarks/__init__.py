"""Speed, side by side with what people use today: ``python -m benchmarks ARTIFACT``.

One module a question. Each first shows that all ways give the same numbers, then times them in
turns (:mod:`benchmarks.interleaved`); :mod:`benchmarks.report` prints and writes the tables.
"""
