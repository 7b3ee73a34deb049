"""``python -m ptmech_builder.safety_tuning``."""

import typer

from ptmech_builder.safety_tuning.runs import main

if __name__ == "__main__":
    typer.run(main)
