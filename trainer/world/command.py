"""The small world from the command line.

::

    python -m trainer world sheet FILE.png [--first SEED] [--rows N]     # a sheet of scenes at several K
    python -m trainer world data FOLDER [--photographs N] [--sharp N] [--first SEED]
    python -m trainer world train sd15|flux OUT --data FOLDER [FOLDER ...] [--steps N] ...
    python -m trainer fit trainer/configs/world-sd15.yaml                # an adapter on it
    python -m trainer world reference FOLDER [--scenes N]                # what held-out scenes look like at 5 K
    python -m trainer world sweep FOLDER BASE [--adapter FILE] [--scenes N] [--grounding G] ...
    python -m trainer world mask FILE --data FOLDER                      # a network that finds what is in focus
    python -m trainer world depth OUT --data FOLDER                      # a network that finds depth
    python -m trainer world classes FILE --data FOLDER                   # a network that says what is where
    python -m trainer evaluate images SWEEPS --reference REFERENCE
    python -m trainer world experiment FOLDER BASE --adapter both=FILE [wild=FILE synthetic=FILE]
    python -m trainer world edit FOLDER BASE --adapter FILE              # photographs at another K, every way
    python -m trainer world lens FILE                                    # a diffusion lens that has learnt nothing
    python -m trainer world steps FOLDER BASE --generator NAME=FILE ...   # few-step generators and their teacher
    python -m trainer world apertures FOLDER BASE --generator NAME=FILE ...   # ways to obey an f-number
    python -m trainer world lenses FOLDER DATA --lens NAME=FILE ...      # lens models as depth gets worse
    python -m trainer world focus FOLDER [--network FILE]                # what to focus on, as depth gets worse

``train``, ``sweep`` and ``edit`` may be stopped and given again: they go on. ``OUT/base.safetensors`` is the
result of ``train``, the average of the weights; the trainer's ``base.checkpoint`` reads it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from bokeh_ops.digest import content_key, file_key
from bokeh_ops.errors import BokehError
from trainer.comfyui import start


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from trainer.recipes.world import Plan
    from trainer.world.base import NETWORKS

    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="action", required=True)
    sheet = commands.add_parser("sheet", help="write a contact sheet of scenes at several K")
    sheet.add_argument("file", type=Path)
    sheet.add_argument("--first", type=int, default=0, help="seed of the first scene")
    sheet.add_argument("--rows", type=int, default=8, help="scenes")
    data = commands.add_parser("data", help="write a data set that `fit` and `train` read")
    data.add_argument("folder", type=Path)
    data.add_argument("--photographs", type=int, default=10800, help="scenes taken at random K")
    data.add_argument("--sharp", type=int, default=1200, help="scenes that are all in focus")
    data.add_argument("--first", type=int, default=0, help="seed of the first scene")
    train = commands.add_parser("train", help="train a base model")
    train.add_argument("architecture", choices=tuple(NETWORKS))
    train.add_argument("out", type=Path)
    train.add_argument("--data", type=Path, nargs="+", required=True, help="folders written by `data`")
    train.add_argument("--until", type=int, help="stop at this step (the plan stays as it is)")
    for field in fields(Plan):
        name = f"--{field.name.replace('_', '-')}"
        kind = int if isinstance(field.default, int) else float
        train.add_argument(name, type=kind, default=field.default, help=f"default {field.default}")
    reference = commands.add_parser("reference", help="render held-out scenes at every K")
    reference.add_argument("folder", type=Path)
    reference.add_argument("--scenes", type=int, default=100)
    sweep = commands.add_parser("sweep", help="sample held-out captions at every K")
    sweep.add_argument("folder", type=Path)
    sweep.add_argument("base", type=Path, help="file of the base model")
    sweep.add_argument("--adapter", type=Path, help="adapter; without it, words in the caption speak of blur")
    sweep.add_argument("--scenes", type=int, default=100)
    sweep.add_argument("--pivot", type=float, default=14.0, help="K of the pivot")
    sweep.add_argument("--grounding", type=int, default=-1, help="grounded steps; -1: 60 %%, 0: none")
    sweep.add_argument("--both-branches", action="store_true", help="ground the negative branch too")
    sweep.add_argument("--colours", action="store_true", help="match colours to the pivot's (eq. 13)")
    sweep.add_argument("--cfg", type=float, help="classifier-free guidance; SD1.5: 3, FLUX: 1")
    sweep.add_argument("--steps", type=int, default=30, help="sampling steps")
    sweep.add_argument("--mask", type=Path, help="file written by `mask`; default: the one that is here")
    mask = commands.add_parser("mask", help="train the network that finds the main thing")
    mask.add_argument("file", type=Path)
    mask.add_argument("--data", type=Path, required=True, help="folder written by `data`")
    mask.add_argument("--steps", type=int, default=500)
    depth = commands.add_parser("depth", help="train the network that finds the depth of a picture")
    depth.add_argument("folder", type=Path, help="of the model, new")
    depth.add_argument("--data", type=Path, required=True, help="folder written by `data`")
    depth.add_argument("--steps", type=int, default=4800)
    classes = commands.add_parser("classes", help="train the network that says what each pixel shows")
    classes.add_argument("file", type=Path)
    classes.add_argument("--data", type=Path, required=True, help="folder written by `data`")
    classes.add_argument("--steps", type=int, default=4000)
    experiment = commands.add_parser("experiment", help="all comparisons, as sweeps and one table")
    experiment.add_argument("folder", type=Path)
    experiment.add_argument("base", type=Path, help="file of the base model")
    experiment.add_argument(
        "--adapter", nargs="+", required=True, metavar="NAME=FILE", help="'both' is needed"
    )
    experiment.add_argument("--mask", type=Path, help="file written by `mask`; default: the one that is here")
    experiment.add_argument("--scenes", type=int, default=100)
    experiment.add_argument(
        "--only", nargs="+", metavar="NAME", help="these comparisons alone, by their names"
    )
    lens = commands.add_parser(
        "lens", help="a diffusion lens that has learnt nothing, for `python -m trainer lens`"
    )
    lens.add_argument("file", type=Path)
    lens.add_argument("--seed", type=int, default=0)
    lens.add_argument(
        "--told", nargs="*", default=[], choices=["defocus", "layered"], help="as lens.told of its training"
    )
    lenses = commands.add_parser("lenses", help="lens models on synthesised scenes, as depth gets worse")
    lenses.add_argument("folder", type=Path)
    lenses.add_argument(
        "data", type=Path, help="folder made by `synthesize`, of scenes that are not trained on"
    )
    lenses.add_argument(
        "--lens", nargs="+", default=[], metavar="NAME=FILE", help="made by `python -m trainer lens`"
    )
    lenses.add_argument("--scenes", type=int, default=100)
    lenses.add_argument(
        "--faults", nargs="+", metavar="FAULT", help="these faults of depth alone, such as 'exact'"
    )
    lenses.add_argument(
        "--depth",
        type=Path,
        metavar="FILE",
        help="also depth by this network: ONNX, from 0..255 to disparity",
    )
    focus = commands.add_parser("focus", help="ways to find what to focus on in held-out scenes")
    focus.add_argument("folder", type=Path)
    focus.add_argument(
        "--network", type=Path, help="made by `python -m trainer focus`; default: the shipped one"
    )
    focus.add_argument("--mask", type=Path, help="file written by `mask`; default: the one that is here")
    focus.add_argument("--scenes", type=int, default=200)
    steps = commands.add_parser(
        "steps", help="generators of few steps beside their teacher, against sharp renders"
    )
    steps.add_argument("folder", type=Path)
    steps.add_argument("base", type=Path, help="file of the teacher")
    steps.add_argument(
        "--generator", nargs="+", default=[], metavar="NAME=FILE", help="made by `python -m trainer distil`"
    )
    steps.add_argument("--steps", type=int, default=4, help="of a generator")
    steps.add_argument("--scenes", type=int, default=100, help="held-out captions")
    steps.add_argument("--reference", type=int, default=500, help="renders that all are compared with")
    apertures = commands.add_parser("apertures", help="ways to obey an f-number, on held-out captions")
    apertures.add_argument("folder", type=Path)
    apertures.add_argument("base", type=Path, help="file of the teacher")
    apertures.add_argument(
        "--generator",
        nargs="+",
        default=[],
        metavar="NAME=FILE",
        help="made by `python -m trainer distil`; what its training left beside it belongs to it",
    )
    apertures.add_argument("--steps", type=int, default=4, help="of a generator")
    apertures.add_argument("--scenes", type=int, default=100, help="held-out captions")
    apertures.add_argument("--reference", type=int, default=500, help="renders that all are compared with")
    edit = commands.add_parser(
        "edit", help="photographs of held-out scenes at another K, against true renders"
    )
    edit.add_argument("folder", type=Path)
    edit.add_argument("base", type=Path, help="file of the base model")
    edit.add_argument("--adapter", type=Path, required=True, help="its adapter")
    edit.add_argument("--scenes", type=int, default=100)
    edit.add_argument("--first", type=int, default=0, help="number of the first held-out scene")
    edit.add_argument("--only", nargs="+", metavar="NAME", help="these ways alone, by their names")


def run(arguments: argparse.Namespace) -> int:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))  # tiny tensors gain nothing from more
    actions = {
        "sheet": _sheet,
        "data": _data,
        "train": _train,
        "reference": _reference,
        "sweep": _sweep,
        "mask": _mask,
        "depth": _depth,
        "classes": _classes,
        "experiment": _experiment,
        "edit": _edit,
        "lens": _lens,
        "lenses": _lenses,
        "focus": _focus,
        "steps": _steps,
        "apertures": _apertures,
    }
    return actions[arguments.action](arguments)


def _sheet(chosen: argparse.Namespace) -> int:
    from trainer.world.sheet import write_sheet

    write_sheet(chosen.file, range(chosen.first, chosen.first + chosen.rows))
    return 0


def _data(chosen: argparse.Namespace) -> int:
    from trainer.world.data import write_dataset

    write_dataset(chosen.folder, chosen.photographs, chosen.sharp, chosen.first)
    return 0


def _train(chosen: argparse.Namespace) -> int:
    start(None, Path.cwd(), cpu=True)
    from trainer.recipes.world import Pictures, Plan, new_model, train

    plan = Plan(**{field.name: getattr(chosen, field.name) for field in fields(Plan)})
    pictures = Pictures(chosen.data)
    model = new_model(chosen.architecture, pictures, plan.seed)
    count = sum(value.numel() for value in model.network.parameters())
    print(f"{chosen.architecture}: {count / 1e6:.2f} M parameters, from {chosen.out}", file=sys.stderr)
    return 0 if train(model, pictures, plan, chosen.out, chosen.until) or chosen.until else 130


def _reference(chosen: argparse.Namespace) -> int:
    from trainer.world.sweeps import held_out, write_reference

    write_reference(chosen.folder, held_out(chosen.scenes))
    return 0


def _sweep(chosen: argparse.Namespace) -> int:
    from bokeh_ops.adapter.files import read_adapter
    from trainer.world.mask import SHIPPED, read_mask
    from trainer.world.sweeps import Variant, held_out, write_sweeps

    start(None, Path.cwd(), cpu=True)
    from bokeh_ops.host.small.model import read_small

    adapter = None if chosen.adapter is None else read_adapter(chosen.adapter)
    variant = Variant(
        control="words" if adapter is None else "adapter",
        pivot=chosen.pivot,
        grounding=chosen.grounding,
        branches="positive and negative" if chosen.both_branches else "positive only",
        colours="mean and deviation" if chosen.colours else False,
        cfg=chosen.cfg,
        steps=chosen.steps,
    )
    network = read_mask(chosen.mask or SHIPPED)
    write_sweeps(chosen.folder, read_small(chosen.base), adapter, held_out(chosen.scenes), variant, network)
    return 0


def _mask(chosen: argparse.Namespace) -> int:
    from trainer.data import open_dataset
    from trainer.world.mask import train_mask, write_network

    write_network(chosen.file, train_mask(open_dataset(chosen.data), chosen.steps))
    return 0


def _depth(chosen: argparse.Namespace) -> int:
    from trainer.data import open_dataset
    from trainer.world.depth import train_depth, write_depth

    write_depth(chosen.folder, train_depth(open_dataset(chosen.data), chosen.steps))
    return 0


def _classes(chosen: argparse.Namespace) -> int:
    from trainer.data import open_dataset
    from trainer.world.classes import train_classes
    from trainer.world.mask import write_network

    write_network(chosen.file, train_classes(open_dataset(chosen.data), chosen.steps))
    return 0


def _experiment(chosen: argparse.Namespace) -> int:
    from bokeh_ops.adapter.files import read_adapter
    from trainer.measure.metrics.weights import load_lpips
    from trainer.world.experiment import MAIN, markdown, run, variants
    from trainer.world.mask import SHIPPED, read_mask

    named = dict(each.partition("=")[::2] for each in chosen.adapter)
    if MAIN not in named or not all(named.values()):
        raise BokehError(
            f"--adapter has {', '.join(chosen.adapter)}; expected NAME=FILE, {MAIN}=FILE among them."
        )
    start(None, Path.cwd(), cpu=True)
    from bokeh_ops.host.small.model import read_small

    adapters = {name: read_adapter(file) for name, file in named.items()}
    compared = _only(variants(list(adapters)), chosen.only)
    network, lpips = read_mask(chosen.mask or SHIPPED), load_lpips()
    model = read_small(chosen.base)
    print(markdown(run(chosen.folder, model, adapters, network, lpips, chosen.scenes, compared)))
    return 0


def _edit(chosen: argparse.Namespace) -> int:
    from bokeh_ops.adapter.files import read_adapter
    from trainer.measure.metrics.weights import load_lpips
    from trainer.world.edit import markdown, measure, ways
    from trainer.world.sweeps import held_out

    start(None, Path.cwd(), cpu=True)
    from bokeh_ops.host.adapter.apply import apply_adapter
    from bokeh_ops.host.small.model import read_small

    compared = _only(ways(), chosen.only)
    made_of = content_key(chosen.base.read_bytes(), chosen.adapter.read_bytes())
    model = read_small(chosen.base)
    patcher = apply_adapter(model.patcher, read_adapter(chosen.adapter))
    seeds = held_out(chosen.first + chosen.scenes)[chosen.first :]
    print(markdown(measure(model, patcher, seeds, compared, load_lpips(), chosen.folder, made_of)))
    return 0


def _lens(chosen: argparse.Namespace) -> int:
    start(None, Path.cwd(), cpu=True)
    from trainer.world.lens import write_lens_base

    write_lens_base(chosen.file, chosen.seed, chosen.told)
    return 0


def _lenses(chosen: argparse.Namespace) -> int:
    from bokeh_ops.render import MODELS, LensModel
    from trainer.measure.metrics.weights import load_lpips
    from trainer.world.lenses import FAULTS, depth_by, markdown, measure

    faults = _only(FAULTS, chosen.faults)
    files = dict(each.partition("=")[::2] for each in chosen.lens)
    if not all((*files, *files.values())):
        raise BokehError(f"--lens has {', '.join(chosen.lens)}; expected NAME=FILE.")
    models: dict[str, str | LensModel] = {name: name for name in ("unchanged", *MODELS)}
    if files:
        start(None, Path.cwd(), cpu=True)
        from bokeh_ops.host.small.lens import read_lens

        models |= {name: read_lens(Path(file)) for name, file in files.items()}
    if chosen.depth is not None:
        name = f"by {chosen.depth.stem}"
        faults[name], files[name] = depth_by(chosen.depth), str(chosen.depth)
    made_of = {name: content_key(Path(file).read_bytes()) for name, file in files.items()}
    print(markdown(measure(chosen.folder, chosen.data, models, chosen.scenes, load_lpips(), faults, made_of)))
    return 0


def _focus(chosen: argparse.Namespace) -> int:
    from bokeh_ops.depth.focus_transformer import SHIPPED as SHIPPED_NETWORK
    from bokeh_ops.depth.focus_transformer import read_focus_transformer
    from trainer.world.focus import markdown, measure
    from trainer.world.mask import SHIPPED, read_mask
    from trainer.world.sweeps import held_out

    network = read_focus_transformer(chosen.network or SHIPPED_NETWORK)
    print(
        markdown(measure(chosen.folder, network, read_mask(chosen.mask or SHIPPED), held_out(chosen.scenes)))
    )
    return 0


def _steps(chosen: argparse.Namespace) -> int:
    from trainer.world.mask import SHIPPED, read_mask
    from trainer.world.steps import markdown, measure, ways

    named = _generators(chosen)
    start(None, Path.cwd(), cpu=True)
    from bokeh_ops.host.small.model import read_small

    generators = {name: read_small(file) for name, file in named.items()}
    compared = ways(read_small(chosen.base), generators, chosen.steps)
    print(
        markdown(measure(chosen.folder, compared, read_mask(SHIPPED), chosen.scenes, chosen.reference)),
        end="",
    )
    return 0


def _apertures(chosen: argparse.Namespace) -> int:
    from bokeh_ops.depth.estimate import load_estimator
    from bokeh_ops.depth.focus_transformer import SHIPPED as FOCUS
    from bokeh_ops.depth.focus_transformer import read_focus_transformer
    from trainer.measure.metrics.weights import load_lpips
    from trainer.world.apertures import Judges, measure, read_generator, ways
    from trainer.world.classes import SHIPPED as CLASSES
    from trainer.world.classes import read_classes
    from trainer.world.mask import SHIPPED, read_mask

    named = _generators(chosen)
    start(None, Path.cwd(), cpu=True)
    from bokeh_ops.host.small.model import read_small
    from bokeh_ops.host.small.shipped import DEPTH
    from trainer.frozen.depth import FrozenDepth

    generators = {name: read_generator(file) for name, file in named.items()}
    lpips = load_lpips()
    depth = FrozenDepth(load_estimator(DEPTH))
    compared = ways(read_small(chosen.base), generators, depth, read_focus_transformer(FOCUS), chosen.steps)
    files = [
        chosen.base,
        FOCUS,
        SHIPPED,
        CLASSES,
        *sorted(each for each in DEPTH.iterdir() if each.is_file()),
    ]
    shared = content_key(*map(file_key, files), chosen.steps, chosen.scenes, chosen.reference, lpips is None)
    made_of = {"reference": shared} | dict.fromkeys(compared, shared)
    for name, each in generators.items():
        own = content_key(shared, each.made_of)
        made_of |= {way: own for way in compared if way.partition(",")[0] == name}
    judges = Judges(read_mask(), read_classes(), lpips)
    print(measure(chosen.folder, compared, judges, chosen.scenes, chosen.reference, made_of), end="")
    return 0


def _generators(chosen: argparse.Namespace) -> dict[str, Path]:
    """Files of generators by name."""
    named = dict(each.partition("=")[::2] for each in chosen.generator)
    if not all((*named, *named.values())):
        raise BokehError(f"--generator has {', '.join(chosen.generator)}; expected NAME=FILE.")
    return {name: Path(file) for name, file in named.items()}


def _only(compared: dict[str, Any], names: Sequence[str] | None) -> dict[str, Any]:
    """Those that were asked for."""
    strange = sorted(set(names or ()) - set(compared))
    if strange:
        raise BokehError(f"There is no comparison {strange[0]!r}; there are {', '.join(compared)}.")
    return {name: compared[name] for name in names or compared}
