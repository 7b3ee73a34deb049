"""One page that shows what post-training did to a model: findings, charts and their numbers.

:func:`write` puts everything an artifact says about a pair of stages into one HTML file that needs
no network and runs nothing but its own drawing code::

    import ptmech as sdk

    sdk.report.write(sdk.load("artifacts/demo"), "report.html")

The same on the command line: ``ptmech report artifacts/demo -o report.html``.
"""

from ptmech.report.figures import Figure, Section
from ptmech.report.findings import Finding, findings
from ptmech.report.sections import sections
from ptmech.report.writing import write

__all__ = ["Figure", "Finding", "Section", "findings", "sections", "write"]
