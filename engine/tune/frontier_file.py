"""What a search leaves: a JSON document with everything that was measured, and rows with the field's names for it.

Inside the laboratory closeness is divergence, whatever it is of; rows and figures say KLD or distance. Invariant: the
names of rows are those of `lathe kld`'s figures, so a catalogue keeps both in one place.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from lathe.engine.errors import DataError, MissingError
from lathe.engine.jobs.values import Figure
from lathe.engine.tune.frontier import Measure, Point
from lathe.engine.tune.halving import Run

_NAMES: dict[Measure, dict[str, str]] = {
    "kld": {
        "predicted": "predicted_kld", "divergence": "kld", "error": "kld_error", "divergence_99_9": "kld_99_9",
        "agreement": "same_top", "perplexity": "perplexity",
    },
    "distance": {
        "predicted": "predicted_distance", "divergence": "distance", "error": "distance_error",
        "divergence_99_9": "distance_99_9", "agreement": "same_nearest", "neighbours": "neighbours",
    },
}  # fmt: skip
"""What a point's closeness is called in rows, by what it is."""
_CHOSEN = {"kld": "mean_kld", "kld_error": "mean_kld_error", "same_top": "same_top_p", "distance": "mean_distance",
           "distance_error": "mean_distance_error"}  # fmt: skip
"""Names of the same as figures of a job, where they are others."""


class FrontierFile(msgspec.Struct, frozen=True, kw_only=True):
    """What the JSON artefact holds."""

    model: str
    model_sha256: str
    text: str
    text_sha256: str
    context: int
    chunks: int
    measure: Measure = "kld"
    """What the divergence of points is."""
    feedback: bool
    exact: bool
    """Whether divergence was computed over the whole vocabulary."""
    readings: int
    """Measurements taken."""
    points: tuple[Point, ...]
    """By size; the first of equals is the better."""
    sensitivity: dict[str, dict[str, float]]
    """Tensor -> type -> divergence it alone would cause."""
    tensor_bytes: dict[str, dict[str, int]]
    runs: tuple[Run, ...] = ()
    """Ways to run the point that answers the wish, the best first."""
    machine: str = ""
    """The processor that speeds were measured on."""
    imatrix: str = ""
    """Path of the importances that every point was made with."""
    seconds: float | None = None
    """What the search took."""
    seconds_asked: float | None = None
    spent: dict[str, float] = {}
    """Part of the search -> seconds."""
    left_out: tuple[str, ...] = ()
    """What there was no time for."""


def read_frontier(path: Path) -> FrontierFile:
    """Read the JSON artefact.

    Raises:
        DataError: it is none.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=FrontierFile)
    except FileNotFoundError as error:
        raise MissingError(f"there is no frontier at {path}", hint="`lathe tune` measures one") from error
    except (OSError, msgspec.MsgspecError) as error:
        raise DataError(f"{path} is no frontier of `lathe tune`: {error}") from error


def point_row(point: Point, on_frontier: bool, measure: Measure) -> dict[str, Figure]:
    """A point as a row, its closeness under the names of the measure."""
    names = _NAMES[measure]
    foreign = {"mix", *_NAMES["kld"], *_NAMES["distance"]} - names.keys()
    every = msgspec.structs.asdict(point)
    row = {names.get(name, name): value for name, value in every.items() if name not in foreign}
    return {"label": point.label} | row | {"frontier": on_frontier}


def chosen_figures(point: Point, measure: Measure) -> dict[str, Figure]:
    """The figures of a job that chose a point."""
    row = point_row(point, True, measure)
    names = ("bytes", *_NAMES[measure].values(), "tokens_per_s", "prompt_tokens_per_s", "peak_bytes")
    return {"chosen": point.label} | {
        _CHOSEN.get(name, name): row[name] for name in names if not name.startswith(("predicted", "perplexity"))
    }
