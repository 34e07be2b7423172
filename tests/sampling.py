"""What the tests of grounded sampling share: fixtures, and the two nodes beside the host's own sampling."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tests import models
from tests.fixture import fixture

if TYPE_CHECKING:
    import pytest

PIVOT = 14.0


@fixture(scope="module", params=models.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@fixture(scope="module")
def base(pack: ModuleType, kind: str, device: str) -> Any:
    return models.host_model(kind, device=device)


@fixture(scope="module")
def adapter(kind: str) -> Any:
    return models.adapter(kind)


@fixture(scope="module")
def model(pack: ModuleType, base: Any, adapter: Any) -> Any:
    return pack.bokeh_ops.host.adapter.apply.apply_adapter(base, adapter)


@fixture(autouse=True)
def unloaded(pack: ModuleType) -> Iterator[None]:
    yield
    models.unload()


@fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.WARNING, "bokeh"):
        yield lambda: [r.message for r in caplog.records if r.name.startswith("bokeh")]


class Sampling:
    """The two nodes and the host's own sampling, with the same defaults."""

    def __init__(self, pack: ModuleType, kind: str, model: Any) -> None:
        self.pack, self.kind, self.model = pack, kind, model
        self.carry = pack.bokeh_ops.host.sampling.conditioning
        self.positive, self.negative = models.conditioning(kind, 0), models.conditioning(kind, 1)
        self.latent = models.empty_latent(kind)

    def sweep(self, **settings: Any) -> dict[str, Any]:
        return {
            "pivot_bokeh": PIVOT,
            "target_bokeh": "14, 2",
            "grounding_steps": -1,
            "grounded_branches": "positive only",
            "rows_per_batch": 0,
            **settings,
        }

    def grounded(
        self,
        model: Any = None,
        latent: Any = None,
        seed: int = 7,
        steps: int = 4,
        cfg: float = 2.0,
        sampler: str = "euler",
        scheduler: str = "simple",
        denoise: float = 1.0,
        prompts: Any = None,
        bokeh_guidance: float = 0.0,
        **sweep: Any,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        positive, negative = prompts or (self.positive, self.negative)
        return self.pack.nodes.sampling.GroundedSampler.execute(
            model or self.model, positive, negative, latent or self.latent, seed, steps, cfg, sampler, scheduler,
            denoise, bokeh_guidance, **self.sweep(**sweep),
        ).result  # fmt: skip

    def advanced(
        self,
        guider: Any,
        sampler: Any = "euler",
        sigmas: Any = None,
        latent: Any = None,
        noise: Any = 7,
        **sweep: Any,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        noise, sampler, sigmas, latent = self.custom(sampler, sigmas, latent, noise)
        return self.pack.nodes.sampling.GroundedSamplerAdvanced.execute(
            noise, guider, sampler, sigmas, latent, **self.sweep(**sweep)
        ).result

    def custom_alone(
        self, guider: Any, sampler: Any = "euler", sigmas: Any = None, latent: Any = None
    ) -> Tensor:
        from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced

        noise, sampler, sigmas, latent = self.custom(sampler, sigmas, latent, 7)
        return models.call(SamplerCustomAdvanced, noise, guider, sampler, sigmas, latent)["samples"]

    def custom(self, sampler: Any, sigmas: Any, latent: Any, noise: Any) -> tuple[Any, Any, Any, Any]:
        from comfy_extras.nodes_custom_sampler import BasicScheduler, KSamplerSelect, RandomNoise

        if isinstance(sampler, str):
            sampler = models.call(KSamplerSelect, sampler)
        if sigmas is None:
            sigmas = models.call(BasicScheduler, self.model, "simple", 4, 1.0)
        noise = models.call(RandomNoise, noise) if isinstance(noise, int) else noise
        return noise, sampler, sigmas, latent or self.latent

    def alone(
        self, k: float = PIVOT, model: Any = None, latent: Any = None, cfg: float = 2.0, **settings: Any
    ) -> Tensor:
        """The host's KSampler with that K, the negative told -30 as released."""
        positive = self.carry.with_k(self.positive, [k])
        negative = self.carry.with_k(self.negative, [-30.0])
        settings = {"scheduler": "simple", **settings}
        return models.sample(
            model or self.model, positive, negative, latent or self.latent, cfg=cfg, **settings
        )


@fixture
def s(pack: ModuleType, kind: str, model: Any) -> Sampling:
    return Sampling(pack, kind, model)


def cfg_guider(model: Any, positive: Any, negative: Any, cfg: float = 2.0) -> Any:
    from comfy_extras.nodes_custom_sampler import CFGGuider

    return models.call(CFGGuider, model, positive, negative, cfg)


def real_latent(kind: str, pictures: int = 1) -> dict[str, Any]:
    return {"samples": models.randn(pictures, models.LATENT_CHANNELS[kind], 8, 8, seed=11), "theirs": "kept"}
