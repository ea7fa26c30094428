"""What a trained model knows of position, and how: looks inside it, on held-out text.

Works on the record of any run whose weights are there. Shapes: B batch, T positions, L layers, H heads, K head dimension, D
documents, N numbers of tokens kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pe_core import data, files, hardware, progress, records, stats
from pe_core.attention import Positions
from pe_core.errors import RecordError
from pe_core.launch import processes
from pe_core.model import LabForCausalLM
from pe_core.records import Record

WINDOWS = 256  # held-out windows looked at, or as many as there are
SCORED = 8  # tokens at the end of a window whose loss is measured where what stands before them is shuffled
KEPT = (0, 8, 32)  # nearest tokens left in their places
_FAST = 16.0  # tokens a turn
_RIDGE = 1e-3  # of the mean variance of a hidden dimension
_BATCH_TOKENS = 2_048
_VERSION = 1  # part of the file's name: raise it when the code below measures something else
_SEED = 0

Floats = NDArray[np.float64]


class Diagnosis(NamedTuple):
    """One model, as plain arrays.

    Attributes:
        probe_errors: (L + 1, D) squared errors of a linear probe of position from the residual stream after 0, 1, … L layers,
            added up by test document; probe_spread: (D,) those of the mean position. R² = 1 - Σ errors / Σ spread.
        distance: (L, H) mean distance from a query to the key it attends to, in tokens; entropy: (L, H) of attention, in
            nats; first: (L, H) the share that goes to the window's first token. Means over queries in the window's second
            half. uniform: the same three of attention that is spread evenly.
        profile: (L, H, T) the share of attention that goes to each distance.
        values: (2, L, H, K) root mean square of each dimension of queries and keys, as they meet.
        wavelengths: (L, K) tokens a dimension needs for a full turn; infinite where it does not turn.
        norms: (L + 1, T) mean length of the residual stream by position.
        shuffled, removed: (N, D) by how much the loss of the last tokens rises, in nats, added up by document, when all but
            the nearest tokens before them are shuffled, or removed; tokens: (D,) how many; kept: (N,) the nearest ones.
    """

    probe_errors: Floats
    probe_spread: Floats
    distance: Floats
    entropy: Floats
    first: Floats
    uniform: Floats
    profile: Floats
    values: Floats
    wavelengths: Floats
    norms: Floats
    shuffled: Floats
    removed: Floats
    tokens: NDArray[np.int64]
    kept: NDArray[np.int64]


def diagnose(record: Record, windows: int = WINDOWS) -> Diagnosis:
    """Look inside one model. Computed once, then read from the run's folder.

    Raises:
        RecordError: the run's weights are not there (records in the book have none), it was trained on a task, most of whose
            windows are questions and padding, or an earlier result cannot be read.
    """
    file = _file(record, windows)
    if file.exists():
        try:
            with file.open("rb") as stream, np.load(stream) as arrays:
                return Diagnosis(**arrays)
        except Exception as error:  # numpy, zipfile and zlib raise many kinds over a damaged file
            raise record.unreadable(file.name, error, "cannot be read") from None
    if not record.has_weights:
        raise RecordError(f"run {record.run}: its weights are not in '{record.folder}'; train it again to look inside")
    record.need_text()
    held = data.prepare(record.experiment, record.folder.parent / ".cache")
    with progress.quiet_transformers():
        model = record.model().float().to(hardware.device("auto"))
    model.set_attn_implementation("eager")
    chosen = np.unique(np.linspace(0, len(held.test) - 1, min(windows, len(held.test))).round().astype(int))
    found = look(model, held.test[chosen].astype(np.int64), held.test_documents[chosen], record.label)
    files.write(file, lambda opened: np.savez_compressed(opened, **found._asdict()))
    return found


def looked_into(record: Record, windows: int = WINDOWS) -> bool:
    """Whether `diagnose` has a result to read. Records in the book have no weights, but they may have that."""
    return _file(record, windows).exists()


def _file(record: Record, windows: int) -> Path:
    return record.folder / f"diagnosis-{_VERSION}-{windows}.npz"


def diagnose_all(trained: Sequence[Record], windows: int = WINDOWS) -> list[Diagnosis]:
    """`diagnose` for each record, on a CPU several at once."""
    processes.for_each_run(_diagnose_folder, trained, windows)
    return [diagnose(record, windows) for record in trained]


def _diagnose_folder(folder: Path, windows: int) -> None:
    diagnose(records.load(folder), windows)


@torch.no_grad()
def look(model: LabForCausalLM, windows_MT: NDArray[np.int64], documents_MT: NDArray[np.integer], label: str = "") -> Diagnosis:
    """All measurements of a model in evaluation mode with explicit scores, on windows (M, T + 1) of held-out text.

    Args:
        documents_MT: which document each target belongs to. The probe is fitted on every other document and tested on the
            rest; where there is one alone, on every other window.
    """
    ids_MT, (M, T) = windows_MT[:, :-1], documents_MT.shape
    attending, probe = _Attending(T), _Probe(_fitted(documents_MT), T)
    norms, squares, count = torch.zeros(0), torch.zeros(0), 0
    rows = np.array_split(np.arange(M), math.ceil(M * T / _BATCH_TOKENS))
    for batch in progress.bar(rows, f"{label}, inside", unit=" batches"):
        ids_BT = torch.from_numpy(ids_MT[batch]).to(model.device)
        states, weights, vectors = _inside(model, ids_BT)
        attending.add(weights)
        probe.add(states, batch)
        length = torch.stack([state.norm(dim=-1).double().sum(dim=0) for state in states]).cpu()
        square = torch.stack([torch.stack([x.double().pow(2).sum(dim=(0, 2)) for x in pair]) for pair in vectors]).cpu()
        norms, squares = (length, square) if not count else (norms + length, squares + square)
        count += len(batch)
    errors, spread = probe.tested(documents_MT)
    shuffled, removed, tokens, kept = _order(model, windows_MT, documents_MT)
    return Diagnosis(
        probe_errors=errors,
        probe_spread=spread,
        **attending.means(),
        values=(squares / (count * T)).sqrt().transpose(0, 1).numpy(),
        wavelengths=np.stack([_wavelengths(layer.attention, squares.shape[-1]) for layer in model.layers]),
        norms=(norms / count).numpy(),
        shuffled=shuffled,
        removed=removed,
        tokens=tokens,
        kept=kept,
    )


def _inside(model: LabForCausalLM, ids_BT: Tensor) -> tuple[list[Tensor], list[Tensor], list[tuple[Tensor, Tensor]]]:
    """The residual stream after 0 … L layers (B, T, hidden), and each layer's weights (B, H, T, T), queries and keys."""
    positions_1T = torch.arange(ids_BT.shape[1], device=ids_BT.device)[None]
    with _meeting(model) as vectors, _before_the_last_norm(model) as last:
        _, states, weights = model.hidden(ids_BT, Positions(positions_1T, positions_1T))
    return [*states, *last], [w for w in weights if w is not None], vectors


@contextmanager
def _meeting(model: LabForCausalLM) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Queries and keys (B, H, T, K) of each layer, as they enter their product."""
    found: list[tuple[Tensor, Tensor]] = []

    def listen(attend: Any) -> Any:
        def heard(q_BHTK: Tensor, k_BHSK: Tensor, *rest: Any) -> Any:
            found.append((q_BHTK, k_BHSK))
            return attend(q_BHTK, k_BHSK, *rest)

        return heard

    modules: list[Any] = [layer.attention for layer in model.layers]
    try:
        for module in modules:
            module.attend = listen(module.attend)
        yield found
    finally:
        for module in modules:
            del module.attend  # the class's own is seen again


@contextmanager
def _before_the_last_norm(model: LabForCausalLM) -> Iterator[list[Tensor]]:
    found: list[Tensor] = []
    hook = model.final_layer_norm.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    try:
        yield found
    finally:
        hook.remove()


def _wavelengths(attention: Any, dims: int) -> Floats:
    """Of every dimension of a layer's queries and keys; latent attention appends those that turn, an encoding may as well."""
    own = attention.encoding.wavelengths().double().cpu().numpy()
    found = np.full(dims, np.inf)
    start = dims - len(own) if getattr(attention, "decoupled", 0) else 0
    found[start : start + len(own)] = own
    return found


# --- attention -------------------------------------------------------------------------------------------------------


class _Attending:
    """Adds up, for queries in the second half of the window, how far and how evenly each head looks."""

    def __init__(self, T: int) -> None:
        self.T, self.count = T, 0
        self.queries = torch.arange(T // 2, T)
        self.distance_QT = (self.queries[:, None] - torch.arange(T)).clamp(min=0)
        self.sums: dict[str, Tensor] = {}

    def add(self, weights: list[Tensor]) -> None:
        distance = self.distance_QT.to(weights[0].device)
        w_LBHQT = torch.stack([w[:, :, self.T // 2 :] for w in weights]).float()
        L, B, H, Q, T = w_LBHQT.shape
        summed_LHQT = w_LBHQT.sum(dim=1)
        profile = torch.zeros(L, H, T, device=w_LBHQT.device).index_add_(2, distance.flatten(), summed_LHQT.flatten(2))
        new = {
            "distance": (summed_LHQT * distance).sum(dim=(2, 3)),
            "entropy": torch.special.entr(w_LBHQT).sum(dim=(1, 3, 4)),
            "first": summed_LHQT[..., 0].sum(dim=2),
            "profile": profile,
        }
        for name, value in new.items():
            self.sums[name] = self.sums.get(name, 0) + value.double().cpu()
        self.count += B * Q

    def means(self) -> dict[str, Floats]:
        seen = (self.queries + 1).double()
        uniform = torch.stack([((seen - 1) / 2).mean(), seen.log().mean(), (1 / seen).mean()])
        return {**{name: (value / self.count).numpy() for name, value in self.sums.items()}, "uniform": uniform.numpy()}


# --- a linear probe of position --------------------------------------------------------------------------------------


def _fitted(documents_MT: NDArray[np.integer]) -> NDArray[np.bool_]:
    """(M, T) which tokens the probe is fitted on: those of every other document."""
    names, which = np.unique(documents_MT, return_inverse=True)
    which = which.reshape(documents_MT.shape)
    return which % 2 == 0 if len(names) > 1 else np.broadcast_to(np.arange(len(which))[:, None] % 2 == 0, which.shape)


class _Probe:
    """Ridge regression of a token's position on its hidden state, in each layer: fitted on some tokens, tested on others.

    Sums of products are all it needs of the tokens it is fitted on; the hidden states of the others are kept, in fp32.
    """

    def __init__(self, fitted_MT: NDArray[np.bool_], T: int) -> None:
        self.fitted, self.T = fitted_MT, T
        self.products: list[Tensor] = []
        self.kept: list[list[Tensor]] = []

    def add(self, states: list[Tensor], rows: NDArray[np.integer]) -> None:
        fitted = torch.from_numpy(self.fitted[rows])
        position_BT = torch.arange(self.T).expand(len(rows), -1)
        self.products = self.products or [torch.zeros(())] * len(states)
        self.kept = self.kept or [[] for _ in states]
        for layer, state in enumerate(states):
            state = state.cpu()
            own = torch.cat((torch.ones(int(fitted.sum()), 1), state[fitted], position_BT[fitted][:, None]), dim=1).double()
            self.products[layer] = self.products[layer] + own.mT @ own
            self.kept[layer].append(state[~fitted])

    def tested(self, documents_MT: NDArray[np.integer]) -> tuple[Floats, Floats]:
        """Squared errors (L + 1, D), and those of the mean position (D,), by test document."""
        documents = documents_MT[~self.fitted]
        position = np.broadcast_to(np.arange(self.T), self.fitted.shape)[~self.fitted].astype(np.float64)
        _, which = np.unique(documents, return_inverse=True)
        errors = []
        for product, kept in zip(self.products, self.kept, strict=True):
            mean, weights = _ridge(product)
            predicted = (torch.cat(kept).double() @ weights[1:] + weights[0]).numpy()
            errors.append(_by_document(which, (position - predicted) ** 2))
        return np.stack(errors), _by_document(which, (position - mean) ** 2)


def _by_document(which: NDArray[np.integer], values: Floats) -> Floats:
    return np.asarray(np.bincount(which, values), np.float64)


def _ridge(product: Tensor) -> tuple[float, Tensor]:
    """Mean target, and intercept and weights, from the sums of products of (1, inputs, target)."""
    n, sums = float(product[0, 0]), product[0]
    centred = product / n - torch.outer(sums, sums) / n**2
    inputs, target = centred[1:-1, 1:-1], centred[1:-1, -1]
    penalty = _RIDGE * inputs.diagonal().mean().clamp(min=1e-12) * torch.eye(len(inputs), dtype=inputs.dtype)
    slope = torch.linalg.solve(inputs + penalty, target)
    mean = float(sums[-1]) / n
    return mean, torch.cat((mean - (sums[1:-1] @ slope / n)[None], slope))


# --- order -----------------------------------------------------------------------------------------------------------


def _order(
    model: LabForCausalLM, windows_MT: NDArray[np.int64], documents_MT: NDArray[np.integer]
) -> tuple[Floats, Floats, NDArray[np.int64], NDArray[np.int64]]:
    """How the loss of a window's last tokens rises when earlier ones change places, or are gone; see `Diagnosis`."""
    T = documents_MT.shape[1]
    scored = min(SCORED, T // 2)
    kept = [n for n in KEPT if n < T - scored - 1]
    _, which = np.unique(documents_MT[:, -scored:], return_inverse=True)
    intact = _last_losses(model, windows_MT, scored)
    rng = np.random.default_rng(_SEED)
    rises: dict[str, list[Floats]] = {"shuffled": [], "removed": []}
    for n in kept:
        # The input of the first scored token stays, too: without it nothing near would be left.
        near = T - scored - n
        moved = windows_MT.copy()
        moved[:, :near] = rng.permuted(windows_MT[:, :near], axis=1)
        for name, changed in (("shuffled", moved), ("removed", windows_MT[:, near:])):
            rise = _last_losses(model, changed, scored) - intact
            rises[name].append(_by_document(which.ravel(), rise.ravel()))
    return np.stack(rises["shuffled"]), np.stack(rises["removed"]), np.bincount(which.ravel()), np.array(kept)


def _last_losses(model: LabForCausalLM, windows_MT: NDArray[np.int64], scored: int) -> Floats:
    losses_MT, done = np.empty((len(windows_MT), scored)), 0  # one array: see `LossFunction.evaluate`
    for batch in np.array_split(windows_MT, math.ceil(windows_MT.size / _BATCH_TOKENS)):
        ids = torch.from_numpy(batch).to(model.device)
        losses_MT[done : done + len(batch)] = model.losses(ids[:, :-1], ids[:, 1:])[:, -scored:].cpu().numpy()
        done += len(batch)
    return losses_MT


# --- frames ----------------------------------------------------------------------------------------------------------


def probes(trained: Sequence[Record], found: Sequence[Diagnosis]) -> pd.DataFrame:
    """R² of the probe: label, family, layer (0 is the embeddings), r2, low, high; over seeds, with intervals over documents."""
    rows = []
    for record, group in _groups(trained, found):
        errors, spread = (np.sum([getattr(one, name) for one in group], axis=0) for name in ("probe_errors", "probe_spread"))
        for layer, of_layer in enumerate(errors):
            value, low, high = stats.bootstrap(lambda s: 1 - s[0] / s[1], of_layer, spread)
            rows.append({"label": record.label, "family": record.family, "layer": layer, "r2": value, "low": low, "high": high})
    return pd.DataFrame(rows)


def order(trained: Sequence[Record], found: Sequence[Diagnosis]) -> pd.DataFrame:
    """Rise of the loss of the last tokens: label, family, kept, change (`shuffled`, `removed`), rise (nats), low, high, p_holm,
    differs. Intervals over seeds and documents (`stats.paired`), corrected over models and numbers kept, for each change."""
    rows, rises = [], []
    for record, group in _groups(trained, found):
        for change in ("shuffled", "removed"):
            for n, kept in enumerate(group[0].kept.tolist()):
                rises.append(stats.paired(np.stack([getattr(one, change)[n] for one in group]), group[0].tokens))
                rows.append({"label": record.label, "family": record.family, "kept": kept, "change": change})
    table = pd.DataFrame(rows)
    for _, part in table.groupby("change"):
        for n, ((value, low, high), p, *_) in zip(part.index, stats.corrected([rises[n] for n in part.index]), strict=True):
            table.loc[n, ["rise", "low", "high", "p_holm"]] = value, low, high, p
    return table.assign(differs=table.p_holm < 0.05)


def heads(trained: Sequence[Record], found: Sequence[Diagnosis]) -> pd.DataFrame:
    """One row per model, seed, layer (from 1) and head: label, family, seed, layer, head, distance, entropy, first."""
    rows = []
    for record, one in zip(trained, found, strict=True):
        about = {"label": record.label, "family": record.family, "seed": record.config["seed"]}
        for layer, head in np.ndindex(one.distance.shape):
            measured = {name: float(getattr(one, name)[layer, head]) for name in ("distance", "entropy", "first")}
            rows.append({**about, "layer": layer + 1, "head": head, **measured})
    return pd.DataFrame(rows)


def profiles(trained: Sequence[Record], found: Sequence[Diagnosis]) -> pd.DataFrame:
    """Share of attention by distance, the mean over seeds, heads, layers, and queries that have a key so far away: label,
    family, distance, share."""
    rows = []
    for record, group in _groups(trained, found):
        T = group[0].profile.shape[-1]
        able = (T - np.maximum(np.arange(T), T // 2)) / (T - T // 2)
        share = np.mean([one.profile for one in group], axis=(0, 1, 2)) / able
        about = {"label": record.label, "family": record.family}
        rows.append(pd.DataFrame({**about, "distance": np.arange(len(share)), "share": share}))
    return pd.concat(rows, ignore_index=True)


def bands(T: int) -> dict[str, tuple[float, float]]:
    """Bands of wavelengths (low, high] in tokens, for windows of T."""
    most = float(np.finfo(np.float64).max)
    return {
        f"fast (up to {_FAST:g} tokens a turn)": (0.0, _FAST),
        f"medium (up to {T})": (_FAST, max(T, _FAST)),
        "slow (less than one turn)": (max(T, _FAST), most),
        "still": (most, math.inf),
    }


def values(trained: Sequence[Record], found: Sequence[Diagnosis]) -> pd.DataFrame:
    """Largest dimension of queries and keys in each band of wavelengths, over the mean dimension of the same head: the mean
    over layers and heads, over seeds. After Jin et al. 2025 (arXiv 2502.01563), who find massive values in slow dimensions.

    Returns:
        columns label, family, of (`queries`, `keys`), band, dims, ratio, low, high; bands without a dimension are left out.
    """
    rows = []
    for record, group in _groups(trained, found):
        for i, of in enumerate(("queries", "keys")):
            for band, (low, high) in bands(record.config["seq_len"]).items():
                within = (group[0].wavelengths > low) & (group[0].wavelengths <= high)
                if not within.any():
                    continue
                by_seed = [_largest(one.values[i], within) for one in group]
                row = {"label": record.label, "family": record.family, "of": of, "band": band, "dims": int(within.sum(1).max())}
                estimate = stats.over_seeds(by_seed)
                rows.append({**row, "ratio": estimate.value, "low": estimate.low, "high": estimate.high})
    return pd.DataFrame(rows)


def _largest(values_LHK: Floats, within_LK: NDArray[np.bool_]) -> float:
    relative = values_LHK / values_LHK.mean(axis=-1, keepdims=True)
    some = within_LK.any(axis=1)
    largest = np.where(within_LK[:, None], relative, -np.inf).max(axis=-1)
    return float(largest[some].mean())


def norms(trained: Sequence[Record], found: Sequence[Diagnosis]) -> pd.DataFrame:
    """Mean length of the residual stream by position, over seeds: label, family, layer (layers before it), position, norm."""
    rows = []
    for record, group in _groups(trained, found):
        for layer, by_position in enumerate(np.mean([one.norms for one in group], axis=0)):
            about = {"label": record.label, "family": record.family, "layer": layer}
            rows.append(pd.DataFrame({**about, "position": np.arange(len(by_position)), "norm": by_position}))
    return pd.concat(rows, ignore_index=True)


def summary(trained: Sequence[Record], found: Sequence[Diagnosis]) -> pd.DataFrame:
    """One row per model, means over layers and heads with intervals over seeds, and last what even attention would have.

    Returns:
        columns label and, with `_low` and `_high`, distance, entropy, first, and norm: the length of the first token's residual
        stream over that of the others, before the last norm.
    """
    rows: list[dict[str, Any]] = []
    for record, group in _groups(trained, found):
        row: dict[str, Any] = {"label": record.label}
        measured = {name: [float(getattr(one, name).mean()) for one in group] for name in ("distance", "entropy", "first")}
        measured["norm"] = [float(one.norms[-1, 0] / one.norms[-1, 1:].mean()) for one in group]
        for name, by_seed in measured.items():
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), stats.over_seeds(by_seed), strict=True))
        rows.append(row)
    even = dict(zip(("distance", "entropy", "first"), found[0].uniform.tolist(), strict=True))
    return pd.DataFrame([*rows, {"label": "spread evenly", **even}])


def _groups(trained: Sequence[Record], found: Sequence[Diagnosis]) -> Iterator[tuple[Record, list[Diagnosis]]]:
    """Each label's first record, and the diagnoses of all its seeds."""
    for label in dict.fromkeys(record.label for record in trained):
        group = [(record, one) for record, one in zip(trained, found, strict=True) if record.label == label]
        yield group[0][0], [one for _, one in group]


def highest(table: pd.DataFrame) -> pd.DataFrame:
    """`probes`: of each model the layer after which position can be read best."""
    return table.loc[table.groupby("label", sort=False).r2.idxmax()]
