"""The results note's own numbers (2025-12-05), transcribed once, for showing beside ours."""

from __future__ import annotations

import math

import pandas as pd

SETTING = "NVIDIA L4, 70.4 M parameters, the Pile, 10,000 windows of 128 tokens, one seed"

PERPLEXITY = {"NoPE": 504.6, "RoPE 25 %": 424.0, "ALiBi + MLA": 455.0}  # the last two come from other scripts
DEGRADATION_PERCENT = {"RoPE 25 %": 19.0, "ALiBi + MLA": 10.9}
DEGRADATION = {"RoPE 25 %": 80.6, "ALiBi + MLA": 49.6}
BEST_EPOCH = 3

# epoch, training perplexity, held-out perplexity
LEARNING_CURVE = ((1, 639.7, 694.9), (2, 177.2, 546.0), (3, 96.6, 504.6), (4, 60.2, 506.5))
# start, end, perplexity
POSITIONS = ((0, 16, 609.9), (16, 32, 519.8), (32, 64, 488.7), (64, 96, 493.0), (96, 128, 485.3))
REVERSAL = {"forward": 6226.1, "backward": 4677.2, "ratio": 1.331, "gap": -1548.9}

# A later revision shuffled windows before it split them, 5,000 samples: perplexity before and after.
LEAK = {"RoPE 25 %": (510.3, 107.4), "ALiBi": (517.8, 114.9), "NoPE": (559.9, 131.5)}


def position_average(positions: tuple[tuple[int, int, float], ...] = POSITIONS) -> float:
    """The perplexity a position-wise table implies: exp of the token-weighted mean of its losses."""
    tokens = [end - start for start, end, _ in positions]
    losses = [math.log(perplexity) for _, _, perplexity in positions]
    return math.exp(sum(n * loss for n, loss in zip(tokens, losses, strict=True)) / sum(tokens))


def wrong_weights() -> pd.DataFrame:
    """The position table's average next to every epoch's reported held-out perplexity: which epoch was it measured on?"""
    average = position_average()
    return pd.DataFrame(
        {
            "epoch": [epoch for epoch, _, _ in LEARNING_CURVE],
            "reported held-out perplexity": [val for _, _, val in LEARNING_CURVE],
            "implied by the position table": round(average, 1),
            "difference": [round(average - val, 1) for _, _, val in LEARNING_CURVE],
            "note": ["reported as best" if epoch == BEST_EPOCH else "" for epoch, _, _ in LEARNING_CURVE],
        }
    )


def arithmetic() -> pd.DataFrame:
    """The note's derived numbers, computed again from the numbers they derive from."""
    nope = PERPLEXITY["NoPE"]
    rows = []
    for name in DEGRADATION:
        rows.append((f"NoPE - {name}, perplexity", nope - PERPLEXITY[name], DEGRADATION[name]))
        rows.append((f"NoPE over {name}, percent", 100 * (nope / PERPLEXITY[name] - 1), DEGRADATION_PERCENT[name]))
    rows.append(("reversal ratio, forward / backward", REVERSAL["forward"] / REVERSAL["backward"], REVERSAL["ratio"]))
    rows.append(("reversal gap, backward - forward", REVERSAL["backward"] - REVERSAL["forward"], REVERSAL["gap"]))
    return pd.DataFrame(rows, columns=["quantity", "computed", "the note"]).round(3)


def leak(heldout_share: float = 0.1) -> pd.DataFrame:
    """Perplexities before and after the note's windows were shuffled before the split, and the chance that a held-out
    window has a direct neighbour in the training set under each way of splitting."""
    rows = [(name, before, after, f"{100 * (after / before - 1):+.0f} %") for name, (before, after) in LEAK.items()]
    table = pd.DataFrame(rows, columns=["model", "split in order", "shuffled, then split", "change"])
    table["held-out windows with a neighbour in training"] = f"{100 * (1 - heldout_share**2):.0f} % after shuffling"
    return table
