"""A language model that learns who has what from who gave what to whom.

    lpss train --arch examples/language_model.py:network --data examples/language_model.py:sentences
    lpss sparsify model.pt --arch examples/language_model.py:network \
        --data examples/language_model.py:sentences --sparsity 0.9

Every text has two sentences: ``anna gives the red ball to tom . tom has the red ball``. The second
follows from the first, so the network has to look back: attention must copy the words of the second
sentence that vary. The test sentences never occur in training. The loss counts only the words that
follow from those before them, and the metric is the fraction of these words that is predicted.
"""

import itertools
import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAMES = ["anna", "tom", "eva", "paul", "mia", "jan", "lea", "max"]
COLORS = ["red", "blue", "green", "black", "white", "brown", "grey", "pink"]
THINGS = ["ball", "book", "lamp", "boat", "drum", "kite", "cup", "hat"]
WORDS = [*NAMES, *COLORS, *THINGS, "gives", "gets", "from", "to", "the", "has", "."]
INDEX = {word: number for number, word in enumerate(WORDS)}
# Targets that are ignored, because the next word cannot be known.
OPEN = -100


def sentences() -> dict[str, object]:
    """Return texts as word indices, with the loss and the metrics of a language model."""
    texts = [
        f"{first} {verb} the {color} {thing} {word} {second} . {owner} has the {color} {thing}"
        for first, second in itertools.permutations(NAMES, 2)
        for color in COLORS
        for thing in THINGS
        for verb, word, owner in (("gives", "to", second), ("gets", "from", first))
    ]
    random.Random(0).shuffle(texts)
    words = torch.tensor([[INDEX[word] for word in text.split()] for text in texts])
    x, y = words[:, :-1], words[:, 1:].clone()
    y[:, : words.shape[1] - 6] = OPEN  # up to the period
    return {
        "train": (x[:5000], y[:5000]),
        "test": (x[5000:], y[5000:]),
        "outputs": len(WORDS),
        "loss": loss,
        "metrics": metrics,
        "primary": "accuracy",
    }


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of (N, T, V) logits and (N, T) next words."""
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=OPEN)


def metrics(outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """Return the fraction of words that are predicted, and of texts without an error."""
    counted = targets != OPEN
    right = (outputs.argmax(-1) == targets) | ~counted
    return {
        "accuracy": float(right[counted].float().mean()),
        "whole_texts": float(right.all(1).float().mean()),
    }


class LanguageModel(nn.Module):
    """A small causal transformer: it never sees a word before it has predicted it."""

    def __init__(self, words: int, length: int, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, words)
        ahead = torch.full((length, length), float("-inf")).triu(1)
        self.register_buffer("ahead", ahead, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T) word indices -> (N, T, V) logits of the next words."""
        h = self.embedding(x) + self.position
        # With is_causal, PyTorch does not inspect the mask, which could not be exported.
        return self.head(self.norm(self.blocks(h, mask=self.ahead, is_causal=True)))


def network(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Return a model for texts of this length."""
    return LanguageModel(outputs, input_shape[0])
