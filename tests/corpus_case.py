"""Texts and readers that test_corpus.py and test_shards.py share."""

import random

from nanochat.shards import iter_texts

WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa".split()


def prose(seed, paragraphs=40):
    """Paragraphs of random words; paragraph i ends in "<seed>/<i>", so that each piece tells where it is from."""
    rng = random.Random(seed)
    return "\n\n".join(" ".join(rng.choices(WORDS, k=rng.randint(3, 60))) + f" {seed}/{i}" for i in range(paragraphs))


def documents(data_dir):
    return {split: list(iter_texts(split, data_dir)) for split in ("train", "val")}
