"""The builder of ptmech: turns a card into an artifact."""
