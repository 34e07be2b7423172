"""Results kept in memory by content."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from bokeh_ops.cache import Kept
from bokeh_ops.depth.conventions import fit_to_image
from bokeh_ops.depth.frames import fit_frames
from bokeh_ops.digest import content_key


def one(value: float) -> torch.Tensor:
    """100 bytes."""
    return torch.full((25,), float(value))


def test_a_name_follows_the_content_and_nothing_else() -> None:
    picture = torch.rand(1, 3, 4, 6)
    apart = picture.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # the same in another layout
    assert content_key(picture, "cpu") == content_key(apart, "cpu")
    changed = picture.clone()
    changed[0, 2, 3, 5] += 1e-6
    others = [
        content_key(changed, "cpu"),
        content_key(picture, "cuda"),
        content_key(picture.reshape(1, 3, 6, 4), "cpu"),
        content_key(picture.double(), "cpu"),
        content_key(picture, picture, "cpu"),
        content_key(picture.bfloat16(), "cpu"),
    ]
    assert len({content_key(picture, "cpu"), *others}) == 7


def test_what_was_not_used_for_longest_goes_first() -> None:
    kept, made = Kept(250), []

    def ask(*names: int) -> None:
        run = kept.run()
        for name in names:
            run.of(bytes([name]), lambda name=name: made.append(name) or one(name))

    ask(1)
    ask(2)
    ask(1)
    ask(3)  # in place of 2
    ask(1)
    assert made == [1, 2, 3]
    ask(2)
    assert made == [1, 2, 3, 2]
    assert kept.bytes == 200
    kept.clear()
    assert kept.bytes == 0


def test_a_video_larger_than_the_room_keeps_what_has_room() -> None:
    """Asked for again from the start, as after a change of K: two frames of five are found each time."""
    kept, made = Kept(250), []
    for _ in range(3):
        run = kept.run()
        for name in range(5):
            found = run.of(bytes([name]), lambda name=name: made.append(name) or one(name))
            assert float(found[0]) == name
    assert made == [0, 1, 2, 3, 4, 2, 3, 4, 2, 3, 4]
    large = kept.run().of(b"large", lambda: torch.zeros(100))
    assert large.numel() == 100
    assert kept.bytes == 200  # what is larger than all the room pushes nothing out


def test_threads_may_share_it() -> None:
    kept = Kept(1000)

    def ask(seed: int) -> bool:
        run = kept.run()
        return all(
            float(run.of(bytes([n]), lambda n=n: one(n))[0]) == n
            for n in ((seed * 7 + k) % 30 for k in range(60))
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(40)))
    assert kept.bytes <= 1000


def test_maps_are_fitted_one_by_one_as_all_at_once() -> None:
    maps, images, said = torch.rand(3, 1, 6, 8), torch.rand(3, 3, 24, 32), []
    whole = fit_to_image(maps, 3, 24, 32, None, images)
    kept = Kept(1 << 20)
    for _ in range(2):
        each = fit_frames(maps, 3, 24, 32, said.append, lambda row: images[row : row + 1], kept=kept)
        assert torch.equal(torch.cat(each), whole)
    assert said == ["The depth map was resized from 8 x 6 to 32 x 24."] * 2
    assert kept.bytes == 3 * 24 * 32 * 4
    plain = fit_frames(maps[:1], 3, 24, 32)
    assert torch.equal(torch.cat(plain), fit_to_image(maps[:1], 3, 24, 32))
