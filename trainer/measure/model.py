"""Sample prompts at several K with an adapter, and measure what comes out.

Every prompt and seed makes a scene: a pivot and targets, sampled together by the very code of the Grounded Sampler
node, in your ComfyUI. The pictures are written into OUT/sweeps in the layout that `evaluate images` reads, and measured
as it measures them. Given again, the command samples only what is missing.

The reference of a scene is its own picture at K = 0, rendered at the other K by its depth (--depth and --mask, as for
`prepare`), or pictures of yours (--reference).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bokeh_ops.errors import BokehError
from trainer.cli import UsageError
from trainer.data.prepare.settings import DEPTH_KINDS, kind_of
from trainer.measure.images import add_measuring, measure

if TYPE_CHECKING:
    from trainer.measure.generate import Scenes

HELP = "an adapter: prompts sampled at several K, then measured"

PROMPTS = (
    "a portrait of a woman in a park, photograph",
    "a cup of coffee on a wooden table in a cafe, photograph",
    "a red bicycle leaning against a lamp post in a busy street, photograph",
    "a cat sitting on a garden wall, houses behind it, photograph",
)
MATCHES = ("none", "mean", "mean and deviation")
_BASE = ("architecture", "checkpoint", "diffusion_model", "text_encoders", "vae", "weights")
_SAMPLES = ("negative", "pivot", "steps", "grounding_steps", "cfg", "guidance", "sampler", "scheduler")
DEFAULT_K = "0, 4, 8, 14, 20, 28"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``evaluate model`` understands."""
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="folder for pictures and figures; gone on with if it is there"
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="a configuration of `fit`, for model, prompts and sampling; the other options go before it",
    )
    parser.add_argument(
        "--adapter", type=Path, metavar="FILE", help="adapter file or folder (with --config: what it trained)"
    )
    model = parser.add_argument_group("the model, unless --config names it")
    model.add_argument("--architecture", help="kind of model, as in a configuration of `fit`")
    model.add_argument(
        "--checkpoint", type=_here, metavar="FILE", help="single file with model, text encoder, autoencoder"
    )
    model.add_argument(
        "--diffusion-model", type=_here, metavar="FILE", help="FLUX in parts: the diffusion model"
    )
    model.add_argument(
        "--text-encoders", type=_here, nargs="+", metavar="FILE", help="FLUX in parts: CLIP-L and T5-XXL"
    )
    model.add_argument("--vae", type=_here, metavar="FILE", help="FLUX in parts: the autoencoder")
    model.add_argument(
        "--weights", choices=("auto", "fp32", "bf16", "fp16", "fp8_e4m3fn"), help="type of the weights (bf16)"
    )
    model.add_argument("--comfyui", type=_here, metavar="DIR", help="folder of ComfyUI")
    model.add_argument(
        "--sample-on", choices=("auto", "cpu"), help="where to sample (what ComfyUI would use)"
    )
    _add_sampling(parser.add_argument_group("sampling"))
    render = parser.add_argument_group("a reference rendered from the picture at K = 0")
    render.add_argument("--depth", metavar="PROVIDER", help="where depth is from, as for `prepare`")
    render.add_argument("--depth-kind", choices=DEPTH_KINDS, help="what its values mean, as for `prepare`")
    render.add_argument("--depth-scale", type=float, default=1.0, metavar="X", help="as for `prepare` (1)")
    render.add_argument("--depth-normalise", action="store_true", help="as for `prepare`")
    render.add_argument(
        "--mask", default="nearest", metavar="PROVIDER", help="what is to stay in focus (%(default)s)"
    )
    add_measuring(parser)


def _add_sampling(group: Any) -> None:
    group.add_argument(
        "--prompt", action="append", metavar="TEXT", help="a prompt; may be given several times"
    )
    group.add_argument("--prompts", type=Path, metavar="FILE", help="prompts, one a line")
    group.add_argument("--negative", metavar="TEXT", help="negative prompt")
    group.add_argument("--k", metavar="LIST", help=f"K of the targets, such as '0:28:4' ({DEFAULT_K})")
    group.add_argument("--pivot", type=float, metavar="K", help="K of the pivot (14)")
    group.add_argument("--seeds", default="0", metavar="LIST", help="a scene for each, such as '0, 1, 2' (0)")
    group.add_argument(
        "--size", metavar="N or WxH", help="of the pictures (that of the training's data set, else 512)"
    )
    group.add_argument("--steps", type=int, help="sampling steps (30)")
    group.add_argument("--grounding-steps", type=int, help="grounded steps; -1: 60 %% (-1)")
    group.add_argument(
        "--ground-negative", action="store_true", help="ground the negative branch of guidance too"
    )
    group.add_argument("--cfg", type=float, help="classifier-free guidance (SD1.5: 7, FLUX: 1)")
    group.add_argument("--guidance", type=float, help="FLUX: distilled guidance (3)")
    group.add_argument("--sampler", help="SD1.5: dpmpp_2m, FLUX: euler")
    group.add_argument("--scheduler", help="scheduler of ComfyUI (simple)")
    group.add_argument(
        "--strength", type=float, default=1.0, help="of the adapter (1); 0 shows the model without it"
    )
    group.add_argument("--query-key-strength", type=float, help="of its query/key part (that of --strength)")
    group.add_argument(
        "--colour-match",
        choices=MATCHES,
        default=MATCHES[0],
        help="give the targets the colours of their pivot, as Lab Color Match does (%(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Sample what is missing, render references where asked to, measure, and draw."""
    from trainer.measure.generate import sample_scenes, write_sheets
    from trainer.measure.references import Renderer

    scenes, beside = _scenes(arguments)
    renderer = None
    if arguments.depth is not None:
        if arguments.reference is not None:
            raise UsageError("Give --depth or --reference, not both: a scene has one reference.")
        arguments.depth_kind = kind_of(arguments.depth, arguments.depth_kind)
        if arguments.depth_kind is None:
            raise UsageError("--depth needs --depth-kind: nobody can guess what its values mean.")
        if 0.0 not in scenes.settings.samples.k:
            raise UsageError("--depth renders from the picture at K = 0, but 0 is not among --k.")
        renderer = Renderer(
            arguments.depth,
            arguments.depth_kind,
            arguments.depth_scale,
            arguments.depth_normalise,
            arguments.mask,
        )
    sample_scenes(scenes, arguments.out, beside, renderer)
    arguments.folders = [arguments.out / "sweeps"]
    if renderer is not None:
        arguments.reference = arguments.out / "references"
    arguments.json = arguments.json or arguments.out / "figures.json"
    arguments.plots = arguments.plots or arguments.out / "plots"
    for path in write_sheets(scenes, arguments.out):
        print(f"Written: {path}", file=sys.stderr)
    return measure(arguments, "model", {"sampling": scenes.record()})


def _scenes(arguments: argparse.Namespace) -> tuple[Scenes, Path]:
    """What is to be sampled, and the folder that its relative paths start from."""
    from bokeh_ops.numbers import parse_values
    from trainer.config import Fit
    from trainer.measure.generate import Scenes
    from trainer.recipes.bokeh.samples import Laid
    from trainer.settings import parse_settings

    if arguments.config is None:
        if arguments.architecture is None or arguments.adapter is None:
            raise UsageError("Give --config, or --architecture, --checkpoint (or the parts) and --adapter.")
        text, source, beside = "{out: ., data: {dataset: .}}", "the command line", Path.cwd()
    else:
        try:
            text = arguments.config.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{arguments.config} cannot be read: {error}.") from error
        source, beside = str(arguments.config), arguments.config.absolute().parent
    try:
        k = list(parse_values(arguments.k or DEFAULT_K)) if arguments.k or not arguments.config else None
        seeds = [int(value) for value in parse_values(arguments.seeds)]
    except (BokehError, ValueError) as error:
        raise UsageError(f"--k or --seeds: {error}") from error
    wanted = {
        **{f"base.{name}": getattr(arguments, name) for name in _BASE},
        **{f"samples.{name}": getattr(arguments, name) for name in _SAMPLES},
        "comfyui": arguments.comfyui,
        "device": arguments.sample_on,
        "samples.prompts": _prompts(arguments),
        "samples.k": k,
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in wanted.items() if value is not None]
    settings = parse_settings(text, Fit, source, overrides).resolved()
    strength = arguments.strength
    laid = Laid(
        strength,
        strength if arguments.query_key_strength is None else arguments.query_key_strength,
        arguments.ground_negative,
    )
    adapter = arguments.adapter or beside / Path(settings.out).expanduser() / "adapter.safetensors"
    text = arguments.size or _trained_size(
        arguments.config and beside / Path(settings.data.dataset).expanduser(), Path(adapter)
    )
    size = _size(text, settings.base.architecture)
    return Scenes(settings, Path(adapter), tuple(seeds), size, laid, arguments.colour_match), beside


def _here(name: str) -> str:
    """A file of the current folder by its whole path; anything else may be a name in ComfyUI's folders."""
    return str(Path.cwd() / name) if (Path.cwd() / name).exists() else name


def _trained_size(dataset: Path | None, adapter: Path) -> str:
    """What an adapter was trained at: the size of its data set, else what its file says, else 512."""
    from bokeh_ops.adapter.files import read_adapter
    from trainer.data import open_dataset

    try:
        if dataset is not None:
            return "{}x{}".format(*open_dataset(dataset).resolution)
    except BokehError:
        pass  # the adapter may be here without what it was trained on
    try:
        training = read_adapter(adapter).config.extra.get("training")
        return "{}x{}".format(*training["size"])  # type: ignore[index]
    except (BokehError, TypeError, KeyError, IndexError):
        return "512"  # of SD1.5 and FLUX's released adapter; a file that cannot be read is told of later


def _size(text: str, architecture: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    from bokeh_ops.host.architectures import named

    multiple = named(architecture).size_multiple
    if len(sides) > 2 or not all(side.isdigit() and int(side) and not int(side) % multiple for side in sides):
        raise UsageError(
            f"--size is {text!r}; write 512 or 768x512, multiples of {multiple} for {architecture}."
        )
    return int(sides[0]), int(sides[-1])


def _prompts(arguments: argparse.Namespace) -> list[str] | None:
    given = list(arguments.prompt or [])
    if arguments.prompts is not None:
        try:
            lines = arguments.prompts.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{arguments.prompts} cannot be read: {error}.") from error
        given += [line.strip() for line in lines if line.strip()]
        if not given:
            raise UsageError(f"{arguments.prompts} holds no prompts; expected one a line.")
    if given or arguments.config is not None:
        return given or None
    return list(PROMPTS)
