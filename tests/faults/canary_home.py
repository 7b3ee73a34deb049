"""What the user of the canary test keeps at home: a tiny family, its card, and cards that fail."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.faults.canaries import PASSWORD, STORED, TOKEN
from tests.tiny import Family, Recipe, save_adapter, save_model, write_card, write_dataset


def furnish(home: Path) -> None:
    """Write models, data and cards, everything named by its absolute path below `home`."""
    cards = home / "cards"
    model = save_model(home / "models" / "base")
    family = Family(model, save_adapter(home / "models" / "adapter", model))
    write_card(cards, {**family.recipe(cards), "licence": "cc0-1.0"}, "tiny")
    _write_cards_that_fail(home, cards, family)
    statements = f"statement,label\nSnow is white.,TRUE\nI log in with {TOKEN}.,maybe\n"
    (home / "mine.csv").write_text(statements)
    (home / "a-file").write_text("no folder\n")
    (home / "loop").symlink_to(home / "loop")
    (home / "closed").mkdir(mode=0)
    home.chmod(0o700)


def _write_cards_that_fail(home: Path, cards: Path, family: Family) -> None:
    def card(name: str) -> Recipe:
        recipe = family.recipe(cards)
        del recipe["refusal"], recipe["truth"]
        recipes[name] = {**recipe, "datasets": recipe["datasets"][:1]}
        return recipes[name]

    recipes: dict[str, Recipe] = {}
    card("bad-key")["extraction"][TOKEN] = str(home)
    card("bad-value")["extraction"]["dtype"] = f"https://reader:{PASSWORD}@example.org"
    card("wrong-digest")["datasets"][0]["sha256"] = "0" * 64
    card("no-data")["datasets"][0]["file"] = str(home / "data" / "nothing.csv")
    card("no-adapter")["stages"][1]["adapter"] = str(home / "models" / "nothing")
    card("no-model")["stages"][0]["model"] = {"path": str(home / "models" / "nothing")}
    broken = home / "models" / "broken"
    shutil.copytree(family.model, broken)
    (broken / "config.json").write_text(f'{{"model_type": "{STORED}"')
    card("broken-model")["stages"] = [{**recipes["no-model"]["stages"][1], "name": "broken"}]
    recipes["broken-model"]["stages"][0]["model"] = {"path": str(broken)}
    card("password")["stages"][0]["model"] = {
        "hub": f"https://reader:{PASSWORD}@example.org/model",
        "revision": "main",
    }
    card("hub-model")["stages"] = [
        {"name": "remote", "title": "Remote", "model": {"hub": "keeper/refused", "revision": "v1"}}
    ]
    del card("loose")["datasets"][0]["sha256"]
    card("telling")["description"] = f"Built in {home / 'work'} by its owner."
    for name, recipe in recipes.items():
        write_card(cards, recipe, name)
    shutil.copyfile(cards / "loose.toml", home / "loose-before.toml")
    table = write_dataset(cards, "torn", f'text,label\n"{TOKEN} is unclosed,1\n'.encode())
    recipes["torn-data"] = {**recipes["wrong-digest"]}
    recipes["torn-data"]["datasets"] = [{**recipes["wrong-digest"]["datasets"][0], **table}]
    write_card(cards, recipes["torn-data"], "torn-data")
    (cards / "no-toml.toml").write_text(f'name = "{TOKEN}\n')
