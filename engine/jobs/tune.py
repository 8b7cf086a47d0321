"""Job: the frontier of size and divergence for a model, and the file that answers the user's wish.

Without a wish the frontier alone is the result. Invariant: a wish that nothing answers is an honest no (exit 1) with
everything that was measured, never a file that misses it.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from lathe.engine.errors import ExitCode, UsageError
from lathe.engine.jobs.outputs import gguf_path, model_sha256, output_path, recipe_key, tools, variant_name
from lathe.engine.jobs.values import Artefact, Figure, JobContext, Outcome
from lathe.engine.paths import Home
from lathe.engine.steps import TuneStep
from lathe.engine.tune.frontier import NOUNS, Measure, Point, Wish, best, pareto
from lathe.engine.tune.frontier_file import FrontierFile, chosen_figures, point_row
from lathe.engine.tune.halving import Run, ways
from lathe.engine.tune.trial import Way
from lathe.quantize.artefact import file_sha256, new_artefact, refuse_existing
from lathe.quantize.progress import Report
from lathe.quantize.types import file_type

if TYPE_CHECKING:
    from lathe.engine.tune.laboratory import Laboratory

_NAME_OF_MIX = "MIX"
_USUAL_BITS = 4.85
"""Recipes near this are compared first: most people take Q4_K_M."""
_STAGES = 6
"""Stages of a search with one wish; more sizes and ways to run make more."""


def run(step: TuneStep, context: JobContext) -> Outcome:
    """Measure, choose, write."""
    from lathe.engine.measure.chunks import read_text
    from lathe.engine.native.devices import devices
    from lathe.engine.tune.laboratory import Laboratory
    from lathe.engine.tune.sensitivity import KINDS
    from lathe.engine.tune.settings import Settings

    wished_measure = _wished_measure(step)
    entry = context.model(step.model)
    source = gguf_path(entry)
    text_path = Path(step.text).expanduser()
    text = read_text(text_path)
    digest = hashlib.sha256(text).hexdigest()
    close = step.max_kld or step.max_distance
    wished = any((step.max_size, close, step.min_tokens_per_s))
    if wished or step.mix:  # most answers are mixes: hours of searching should not end here
        output = output_path(context, step.output, step.name or variant_name(entry, _NAME_OF_MIX))
        refuse_existing(output, (source, text_path), force=step.force)
    report = _phases(context)
    model_digest = entry.sha256 or model_sha256(entry, report)
    accelerated = any(device.kind in ("gpu", "igpu") for device in devices())
    settings = Settings(
        kinds=step.kinds or KINDS,
        imatrix=Path(step.imatrix).expanduser() if step.imatrix else None,
        feedback=step.feedback,
        n_ctx=step.context,
        n_chunks=step.chunks,
        seconds=60 * step.minutes,
        threads=step.threads,
        gpu_layers=(-1 if accelerated else 0) if step.gpu_layers is None else step.gpu_layers,
        wished=wished_measure,
    )
    recipe = _recipe(step, entry.name, model_digest, digest)
    folder = Home(Path(context.spec.home)).root / "tune" / recipe_key(_what_was_measured(recipe))[:16]
    laboratory = Laboratory(source, text, text_path.name, folder, settings, report)
    if step.mix:
        point = laboratory.given(step.mix)
        made = _made(step, context, laboratory, point, output, recipe, entry.id, report)
        laboratory.tidy()
        figures, row = chosen_figures(point, laboratory.measure), point_row(point, True, laboratory.measure)
        return Outcome(artefacts=tuple(made), figures=figures, rows=(row,))
    clock = laboratory.clock
    timing = step.speed or step.min_tokens_per_s is not None
    for part in () if timing else ("ways", "speed"):
        clock.drop(part)
    for part, needed in (
        ("mixes", step.max_size or close),
        ("sizes", step.sizes or not (step.max_size or close)),
    ):
        if not needed:
            clock.drop(part)
    laboratory.search.sensitivities()
    wish = Wish(
        max_bytes=laboratory.bytes_of(step.max_size) if step.max_size else None,
        max_divergence=close,
        min_tokens_per_s=step.min_tokens_per_s,
    )
    points = _points(step, wish, laboratory, context)
    runs: list[Run] = []
    if timing:
        likely = best(points, msgspec.structs.replace(wish, min_tokens_per_s=None)) or points[0]
        runs = laboratory.running.ways(likely, _candidates(step, laboratory, accelerated))
        points = _timed(step, points, runs, laboratory, context)
    chosen = best(points, wish)
    frontier = pareto(points)
    artefacts: list[Artefact] = []
    if chosen is not None and wished:
        kind = _NAME_OF_MIX if chosen.mix is not None else chosen.label
        output = output_path(context, step.output, step.name or variant_name(entry, kind))
        make = _made if chosen.mix is not None else _copied
        artefacts += make(step, context, laboratory, chosen, output, recipe, entry.id, report)
    artefacts.append(_frontier_file(step, context, laboratory, points, runs, entry.name, model_digest, digest))
    laboratory.tidy()
    if wished and chosen is None:
        context.log("nothing that was measured answers the wish", "warn")
    context.log(f"took {clock.seconds:.0f} s, {clock.asked:.0f} s were given")
    for what in clock.left_out:
        context.log(f"no time for {what}", "warn")
    figures = {
        "readings": laboratory.search.readings, "points": len(points), "seconds": clock.seconds,
        "left_out": "; ".join(clock.left_out) or None,
    }  # fmt: skip
    if chosen is not None and wished:
        figures |= chosen_figures(chosen, laboratory.measure)
    exit_code = ExitCode.NEGATIVE if wished and chosen is None else ExitCode.OK
    rows = tuple(point_row(point, point in frontier, laboratory.measure) for point in points)
    return Outcome(artefacts=tuple(artefacts), figures=figures, rows=rows, exit=int(exit_code))


def _phases(context: JobContext) -> Report:
    """Progress of a search: another stage whenever other work begins, or the same work anew for another size."""
    stage, before = 0, ("", 0.0)

    def report(label: str, done: float, total: float | None, unit: str) -> None:
        nonlocal stage, before
        if label != before[0] or done < before[1]:
            stage += 1
        before = (label, done)
        context.progress(label, done, total, unit, stage=stage, stages=max(_STAGES, stage))

    return report


def _wished_measure(step: TuneStep) -> Measure | None:
    """The measure of the wish for closeness.

    Raises:
        UsageError: there are two.
    """
    if step.max_kld and step.max_distance:
        raise UsageError("a model has KLD or distance, not both", hint="distance is of embedders; leave one wish out")
    return "kld" if step.max_kld else "distance" if step.max_distance else None


def _points(step: TuneStep, wish: Wish, laboratory: Laboratory, context: JobContext) -> list[Point]:
    """Every point that was asked for and that there is time for, by size; what the wish needs comes first."""
    clock, points = laboratory.clock, list[Point]()
    wanted = [] if wish.max_bytes is None else [wish.max_bytes]
    if wanted or wish.max_divergence is not None:
        with clock.part("mixes"):
            points += [laboratory.mix(size) for size in wanted]
            if wish.max_divergence is not None and (not points or clock.fits("mix")):
                points.append(laboratory.within(wish.max_divergence))
    compared: list[Point] = []
    with clock.part("comparison"):
        for kind in sorted(step.compare, key=lambda kind: abs(file_type(kind).bits - _USUAL_BITS)):
            if (points or compared) and not clock.fits("recipe"):
                clock.leave_out(f"llama.cpp's own {kind}")
            else:
                compared.append(laboratory.recipe(kind))
    sizes = [laboratory.bytes_of(size) for size in step.sizes]
    if not wanted and not sizes and wish.max_divergence is None:
        sizes = [point.bytes for point in compared]
    points += compared
    with clock.part("sizes"):
        for size in dict.fromkeys(size for size in sizes if size not in wanted):
            if any(point.mix is not None for point in points) and not clock.fits("mix"):
                clock.leave_out(f"a mix of {size:,} bytes")
            else:
                points.append(laboratory.mix(size))
    noun = NOUNS[laboratory.measure]
    for point in points:
        context.log(f"{point.label}: {point.bytes:,} bytes, mean {noun} {point.divergence:.5f} ± {point.error:.5f}")
    return sorted(points, key=lambda point: (point.bytes, point.divergence))


def _candidates(step: TuneStep, laboratory: Laboratory, accelerated: bool) -> list[Way]:
    """The ways to run that were asked for, or those worth trying here."""
    from lathe.engine.native.llama import physical_cores

    cores = step.threads or physical_cores()
    blocks = laboratory.headers[0].hyper("block_count")
    half = (blocks // 2,) if isinstance(blocks, int) else ()
    default_layers: tuple[int, ...] = (-1, *half, 0) if accelerated else (0,)
    given = () if step.gpu_layers is None else (step.gpu_layers,)
    reads = laboratory.measure == "distance"
    return ways(
        ("",) if reads else tuple(dict.fromkeys(step.kv_types)),
        step.try_threads or tuple(dict.fromkeys((cores, max(1, cores // 2)))),
        step.try_batch or ((max(512, step.context),) if reads else (128, 512)),
        step.try_gpu_layers or given or default_layers,
    )


def _timed(
    step: TuneStep, points: list[Point], runs: list[Run], laboratory: Laboratory, context: JobContext
) -> list[Point]:
    """Every point with its speed, run the way that was best for the likely one; KV cache as it was measured."""
    usable = [run for run in runs if not run.problem]
    for run in runs:
        if run.problem:
            cache = f"{run.kv_type}, " if run.kv_type else ""
            context.log(f"{cache}{run.threads} threads, batch {run.batch}: {run.problem}", "warn")
    way = next((run.way for run in usable if run.kv_type == step.kv_types[0]), usable[0].way if usable else None)
    if way is None:
        return points
    context.log(f"timing every point with {way.threads} threads, batch {way.batch}, {way.gpu_layers} layers offloaded")
    with laboratory.clock.part("speed"):
        # The one that was run most ways is the one that will probably be chosen: it comes first.
        order = sorted(range(len(points)), key=lambda at: points[at].label != usable[0].label)
        found = {at: laboratory.running.timed(points[at], way) for at in order}
    return [found[at] for at in range(len(points))]


def _recipe(step: TuneStep, name: str, model_digest: str, text_digest: str) -> dict[str, Figure]:
    recipe: dict[str, Figure] = {
        "made_by": "tune", "source": name, "source_sha256": model_digest, "text_sha256": text_digest,
        "imatrix_sha256": file_sha256(Path(step.imatrix).expanduser()) if step.imatrix else None,
        "minutes": float(step.minutes), "context": step.context, "chunks": step.chunks, "feedback": step.feedback,
        "kinds": ",".join(step.kinds),
    }  # fmt: skip
    return recipe | tools()


def _what_was_measured(recipe: dict[str, Figure]) -> dict[str, Figure]:
    """The part of a recipe that the laboratory's folder depends on."""
    return {name: value for name, value in recipe.items() if name not in ("source", "kinds")}


def _made(
    step: TuneStep,
    context: JobContext,
    laboratory: Laboratory,
    point: Point,
    output: Path,
    recipe: dict[str, Figure],
    parent: str,
    report: Report,
) -> list[Artefact]:
    """Write the file and, beside it, its types as llama-quantize reads them."""
    assert point.mix is not None
    recipe = recipe | {"mix_sha256": hashlib.sha256(msgspec.json.encode(point.mix, order="sorted")).hexdigest()}
    inputs = [header.path for header in laboratory.headers]
    with new_artefact(output, inputs=inputs, expected_bytes=point.bytes, force=step.force) as part:
        laboratory.write(
            part, point.mix, {"lathe.recipe": recipe_key(recipe), "lathe.source_sha256": str(recipe["source_sha256"])}
        )
    context.log(f"{output}: {output.stat().st_size:,} bytes")
    types = output.with_suffix(".types.txt")
    lines = [f"^{name.replace('.', chr(92) + '.')}$={kind.lower()}\n" for name, kind in point.mix.items()]
    with new_artefact(types, force=True) as part:
        part.write_text("".join(lines))
    name = step.name or output.stem
    return [
        Artefact(
            name=name, path=str(output), format="gguf", bytes=output.stat().st_size,
            sha256=file_sha256(output, report), parent=parent, recipe=recipe,
        ),
        Artefact(name=f"{name} types", path=str(types), format="text", bytes=types.stat().st_size, parent=parent),
    ]  # fmt: skip


def _copied(
    step: TuneStep,
    context: JobContext,
    laboratory: Laboratory,
    point: Point,
    output: Path,
    recipe: dict[str, Figure],
    parent: str,
    report: Report,
) -> list[Artefact]:
    """Where one of llama.cpp's own recipes answers best: its file, to the byte."""
    (source,) = laboratory.files(point)
    inputs = [header.path for header in laboratory.headers]
    with new_artefact(output, inputs=inputs, expected_bytes=point.bytes, force=step.force) as part:
        shutil.copyfile(source, part)
    context.log(f"{output}: {point.label} as llama.cpp makes it, {output.stat().st_size:,} bytes")
    return [
        Artefact(
            name=step.name or output.stem, path=str(output), format="gguf", bytes=output.stat().st_size,
            sha256=file_sha256(output, report), parent=parent, recipe=recipe | {"type": point.label},
        )
    ]  # fmt: skip


def _frontier_file(
    step: TuneStep,
    context: JobContext,
    laboratory: Laboratory,
    points: list[Point],
    runs: list[Run],
    model: str,
    model_digest: str,
    text_digest: str,
) -> Artefact:
    choices = laboratory.search.choices()
    document = FrontierFile(
        model=model,
        model_sha256=model_digest,
        text=Path(step.text).name,
        text_sha256=text_digest,
        context=step.context,
        chunks=laboratory.search.measured.chunks,
        measure=laboratory.measure,
        feedback=step.feedback,
        exact=laboratory.exact,
        readings=laboratory.search.readings,
        points=tuple(points),
        runs=tuple(runs),
        machine=platform.processor() or platform.machine(),
        imatrix=str(laboratory.imatrix_path),
        seconds=laboratory.clock.seconds,
        seconds_asked=laboratory.clock.asked,
        spent=laboratory.clock.spent,
        left_out=tuple(laboratory.clock.left_out),
        sensitivity={name: {option.kind: option.cost for option in listed} for name, listed in choices.items()},
        tensor_bytes={name: {option.kind: option.bytes for option in listed} for name, listed in choices.items()},
    )
    path = output_path(context, None, f"{variant_name(context.model(step.model), 'frontier')}", ".json")
    with new_artefact(path, force=True) as part:
        part.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1))
    return Artefact(name=path.name, path=str(path), format="json", bytes=path.stat().st_size, sha256=file_sha256(path))
