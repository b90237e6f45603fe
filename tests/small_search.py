"""A small search in the folder that is named; prints its table, and what this process trained, as JSON.

python tests/small_search.py FOLDER
"""

import json
import sys

from small_phrases import small

from nnopt.data import number_phrases
from nnopt.recipes import TranslationRecipe, grid_search, search, translation

RECIPE = TranslationRecipe(
    pairs=120, vocabulary=150, longest=23, units=8, embedding=8, epochs=3, batch_size=32, attention="none"
)
GRID = {"units": [6, 8], "cell": ["gru", "lstm"]}


def patch(note):
    """Takes the small data, spares the search for translations, and tells of each epoch: `note(recipe's fields)`."""
    number_phrases.phrases = small
    translation.decode = lambda network, subwords, sentences: [f"eins {network.settings['units']}"] * len(sentences)

    class Judge(translation.ValidationBLEU):
        def on_epoch_end(self, epoch, logs=None):
            note(", ".join(f"{name}={self.model.settings[name]}" for name in GRID), epoch)
            super().on_epoch_end(epoch, logs)

    search.ValidationBLEU = Judge


def main():
    trained = []
    patch(lambda point, epoch: trained.append([point, epoch]))
    print(json.dumps({"table": grid_search(RECIPE, GRID, sys.argv[1]), "trained": trained}))


if __name__ == "__main__":
    main()
