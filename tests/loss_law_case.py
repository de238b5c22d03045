"""A law of losses over tokens that is known exactly, for the tests of Lane B's inference."""

import numpy as np

from nanochat.lab.horizon.loss_law import Point

N, RATIO = 1_000_000, 4.0
LADDER = (1e6, 2e6, 4e6)  # 1/4, 1/2 and 1 x the default horizon
FLOOR, DROP = 0.6, 0.33  # bits per byte: L = FLOOR + DROP (D / 4e6)^-alpha


def loss(tokens, alpha=0.17, floor=FLOOR, drop=DROP):
    return floor + drop * (np.asarray(tokens) / LADDER[-1]) ** -alpha


def points(alpha=0.17, ladder=LADDER, **law):
    return [Point(tokens, float(loss(tokens, alpha, **law)), seed=1) for tokens in ladder]
