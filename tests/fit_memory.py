"""How much memory a training step takes on a GPU, computed: ``python -m tests.fit_memory sd15,8,0 flux-fp8,4,1``.

Every word is architecture, pictures at once, and 1 for gradient checkpointing; then, if wanted, the side of the
pictures (512), and the numbers of double and single blocks of FLUX. ``flux-fp8`` holds its weights in fp8, as
``flux-24gb.yaml`` does. ``sd15-flops`` counts operations instead: the counter keeps alive what checkpointing lets go
of, so memory cannot be told in the same run. The host's network at full size, a new adapter, grounded rows and
autocast to bf16 run forward and backward on tensors without data, with the attention that the host uses on NVIDIA
cards, while every allocation is added up. What is not in it: the optimiser (8 bytes a trained parameter for AdamW, 16
for Prodigy), the autoencoder, and what CUDA itself takes.

``check,4,0,256`` (pictures, checkpointing, side) runs SD1.5 in single precision on real tensors, on the CPU, and prints
beside the computed growth of memory by how much the process grew. One to a process: what grew stays.
"""

from __future__ import annotations

import sys
import weakref
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from tests.fullsize import FLUX, SD15_UNET, SDXL_UNET
from tests.host import inprocess


class Peak(TorchDispatchMode):
    """Adds up the memory of all tensors that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.most = 0

    def note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self.alive:
            return
        self.alive[storage._cdata] = storage.nbytes()
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, storage._cdata)

    def _gone(self, key: int) -> None:
        self.now -= self.alive.pop(key, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self.note(tensor)
        return out


def load_host_as_on_a_gpu() -> None:
    """The host, with PyTorch's fused attention chosen, as on NVIDIA cards."""
    importable = inprocess.make_torchvision_importable

    def also_choose() -> None:
        importable()
        from comfy.cli_args import args

        args.use_pytorch_cross_attention = True

    inprocess.make_torchvision_importable = also_choose
    try:
        inprocess.load_host()
    finally:
        inprocess.make_torchvision_importable = importable


def step_memory(
    kind: str,
    rows: int,
    checkpointing: bool,
    side: int = 512,
    blocks: tuple[int, int] = (19, 38),
    real: bool = False,
    weights: torch.dtype = torch.bfloat16,
    count_flops: bool = False,
) -> str:
    """One line about one forward and backward over ``rows`` pictures, one of them the pivot.

    Args:
        kind: ``sd15``, ``sdxl`` or ``flux``.
        rows: pictures.
        checkpointing: of gradients.
        side: of the pictures, in pixels.
        blocks: double and single ones of FLUX.
        real: on real tensors in single precision, on the CPU, instead of tensors without data in bf16.
        weights: type of the frozen weights; what is not bf16 is cast layer by layer, as the host does, and a layer's
            cast weights are kept for its way back.
        count_flops: tell of operations instead of memory.
    """
    import comfy.model_patcher

    from bokeh_ops.adapter.attention import Grounding
    from bokeh_ops.adapter.conditions import Conditions
    from bokeh_ops.host.architectures import named, recognise
    from bokeh_ops.host.attention.model_call import ModelCall
    from bokeh_ops.host.training import gradients as training
    from trainer.config import Fit
    from trainer.recipes.bokeh.recipe import choose_parameters, new_adapter
    from trainer.settings import parse_settings

    text = f"out: o\nbase: {{architecture: {kind}, checkpoint: m}}\ndata: {{dataset: d}}"
    settings = parse_settings(text, Fit).resolved()
    architecture, (double, single) = named(kind), blocks
    config = {
        "sd15": SD15_UNET,
        "sdxl": SDXL_UNET,
        "flux": {**FLUX, "depth": double, "depth_single_blocks": single},
    }[kind]
    held = torch.float32 if real else weights
    cpu = torch.device("cpu")
    with nullcontext() if real else FakeTensorMode(allow_non_fake_inputs=True):
        known, make = architecture.small_model({**config, "dtype": held}, False)
        if held not in (torch.float32, torch.bfloat16):
            known.set_inference_dtype(held, torch.bfloat16)
        patcher = comfy.model_patcher.ModelPatcher(make(cpu), cpu, cpu)
        if real:
            for weight in patcher.model.parameters():
                torch.nn.init.normal_(weight, std=0.02)  # what is never written to takes no memory
        patcher.model.requires_grad_(False)

        class Base:
            pass

        Base.architecture, Base.patcher = architecture, patcher  # type: ignore[attr-defined]
        adapter = new_adapter(Base, settings)  # type: ignore[arg-type]
        trained = choose_parameters(adapter, settings.localisation or 0.0)
        channels = 16 if architecture.flow else 4
        x, sigma = torch.randn(rows, channels, side // 8, side // 8), torch.full((rows,), 0.5)
        dtype = torch.float32 if real else torch.bfloat16
        length = architecture.text_tokens or 77
        context = torch.randn(rows, length, architecture.text_width(config), dtype=dtype)
        vector = config.get("adm_in_channels", config.get("vec_in_dim"))
        more = {"y": torch.randn(rows, vector)} if vector else {}
        more |= {"guidance": torch.ones(rows)} if architecture.guided else {}
        peak = Peak()
        for tensor in [*patcher.model.parameters(), *patcher.model.buffers(), *adapter.parameters()]:
            peak.note(tensor)
        start = peak.now
        model = recognise(patcher)
        flops = FlopCounterMode(display=False)
        with training.differentiable(patcher, adapter, checkpointing), flops if count_flops else peak:
            terms = {path: [term] for path, term in adapter.project(Conditions.of_k([0.0] * rows)).items()}
            call = ModelCall(terms, Grounding.from_pivots([-1] + [0] * (rows - 1)))
            before = _resident("VmRSS")
            network = patcher.model.diffusion_model
            with (
                architecture.attach({"cond_or_uncond": [0]}, call, model, network, x) as options,
                nullcontext() if real else torch.autocast("cpu", torch.bfloat16),
            ):
                estimate = patcher.model.apply_model(
                    x, sigma, c_crossattn=context, transformer_options=options, **more
                )
                loss = estimate.square().mean()
            loss.backward()
        size = sum(p.numel() * p.element_size() for p in patcher.model.parameters())
        count = sum(p.numel() for p in trained.values())
        grown = f"; the process grew by {(_resident('VmHWM') - before) / 1e9:.2f} GB" if real else ""
        depth = f" {double} + {single} blocks," if architecture.flow else ""
        what = f"{kind},{depth} {rows} pictures of {side} x {side}, checkpointing {'on' if checkpointing else 'off'}: "
        if count_flops:
            return f"{what}{flops.get_total_flops() / rows / 1e12:.1f} TFLOP a picture"
        return (
            f"{what}weights {size / 1e9:.2f} GB, {count / 1e6:.1f} M parameters train, peak {peak.most / 1e9:.2f} GB "
            f"({(peak.most - start) / 1e9:.2f} GB over weights and adapter){grown}"
        )


def _resident(name: str) -> int:
    """Memory of this process in bytes, now (``VmRSS``) or at most (``VmHWM``); 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), 0)


def main(words: list[str]) -> None:
    load_host_as_on_a_gpu()
    for word in words or ["sd15,8,0", "sd15,8,1", "flux-fp8,4,1"]:
        kind, *numbers = word.split(",")
        if kind == "check":
            print(
                step_memory("sd15", int(numbers[0]), numbers[1] == "1", int(numbers[2]), real=True),
                flush=True,
            )
            continue
        rows, checkpointing, side, double, single = map(int, [*numbers, *"00000"][:5])
        blocks = (double, single) if double or single else (19, 38)
        kind, _, what = kind.partition("-")
        held = torch.float8_e4m3fn if what == "fp8" else torch.bfloat16
        line = step_memory(
            kind, rows, bool(checkpointing), side or 512, blocks, weights=held, count_flops=what == "flops"
        )
        print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
