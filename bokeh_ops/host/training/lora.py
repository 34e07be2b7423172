"""LoRAs of a host's network in training: low-rank changes of its layers, one of them or none at work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import BokehError


class Lora(nn.Module):
    """Low-rank changes of linear and convolution layers, zero at first (Hu et al. 2021); alpha is the rank.

    Args:
        network: the host's.
        places: by the path of a layer in the network what it is called in the file.
        rank: of all of them.
    """

    def __init__(self, network: nn.Module, places: Mapping[str, str], rank: int) -> None:
        super().__init__()
        self.places = dict(places)
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for path in self.places:
            module: Any = network.get_submodule(path)
            if isinstance(module, nn.Linear):
                inner, outer = (module.in_features,), (module.out_features, rank)
            else:
                inner, outer = (module.in_channels, *module.kernel_size), (module.out_channels, rank, 1, 1)
            self.down[_key(path)] = nn.Parameter(torch.randn(rank, *inner) / rank)
            self.up[_key(path)] = nn.Parameter(torch.zeros(outer))

    def hooks(self, network: nn.Module) -> Iterator[Any]:
        """Put the changes on the layers' outputs; handles to take them off again."""
        yield from Loras({"": self}, "").hooks(network)

    def changed(self, path: str, module: nn.Module, x: Tensor, out: Tensor) -> Tensor:
        """What a layer gives with its change: ``out + U D x``.

        Args:
            path: of the layer.
            module: the layer.
            x, out: what it was given and gave.
        """
        down, up = self.down[_key(path)], self.up[_key(path)]
        x = x.to(down.dtype)
        if isinstance(module, nn.Conv2d):
            small = F.conv2d(x, down, None, module.stride, module.padding, module.dilation)
            return out + F.conv2d(small, up).to(out.dtype)
        return out + F.linear(F.linear(x, down), up).to(out.dtype)

    def released(self) -> dict[str, Tensor]:
        """The tensors of a file that the host's Load LoRA takes, where it knows the layers' names."""
        found: dict[str, Tensor] = {}
        for path, name in sorted(self.places.items(), key=lambda item: item[1]):
            found[f"{name}.lora_A.weight"] = self.down[_key(path)].detach().float().cpu().contiguous()
            found[f"{name}.lora_B.weight"] = self.up[_key(path)].detach().float().cpu().contiguous()
        return found

    @torch.no_grad()
    def take(self, file: Path, tensors: Mapping[str, Tensor]) -> None:
        """Take over the tensors of a file that :meth:`released` made.

        Args:
            file: for messages.
            tensors: of it.

        Raises:
            BokehError: other layers, or another rank.
        """
        own = {name: tuple(value.shape) for name, value in self.released().items()}
        given = {name: tuple(value.shape) for name, value in tensors.items()}
        if own != given:
            strange = sorted(set(own.items()) ^ set(given.items()))[0]
            raise BokehError(
                f"{file} has {len(given)} tensors and {len(own)} are expected; the first that differs is {strange[0]} "
                f"of {list(strange[1])}. Give a LoRA that this recipe has written for the same model, with the rank "
                "that is set."
            )
        for path, name in self.places.items():
            self.down[_key(path)].copy_(tensors[f"{name}.lora_A.weight"])
            self.up[_key(path)].copy_(tensors[f"{name}.lora_B.weight"])


class Loras:
    """Several LoRAs of the same layers on one network, of which one is at work, or none.

    Args:
        loras: by name.
        current: the one at work.
    """

    def __init__(self, loras: Mapping[str, Lora], current: str | None = None) -> None:
        self.loras, self.current = loras, current

    @contextmanager
    def acting(self, name: str | None) -> Iterator[None]:
        """While this is open, the LoRA of that name is at work alone; None: none is."""
        before, self.current = self.current, name
        try:
            yield
        finally:
            self.current = before

    def now(self) -> Callable[[], AbstractContextManager[None]]:
        """What brings back the LoRA that is at work now."""
        name = self.current
        return lambda: self.acting(name)

    def hooks(self, network: nn.Module) -> Iterator[Any]:
        """Put them on the layers' outputs; handles to take them off again."""
        for path in next(iter(self.loras.values())).places:
            yield network.get_submodule(path).register_forward_hook(self._added(path))

    def _added(self, path: str) -> Any:
        def hook(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
            if self.current is None:
                return out
            return self.loras[self.current].changed(path, module, given[0], out)

        return hook


def every_layer(network: nn.Module) -> dict[str, str]:
    """All linear and convolution layers of a network, by path, as the host's Load LoRA calls them."""
    return {
        path: f"diffusion_model.{path}"
        for path, module in network.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    }


def _key(path: str) -> str:
    return path.replace(".", "/")  # no dots in names of parameters
