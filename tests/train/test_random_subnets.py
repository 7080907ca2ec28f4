from collections import Counter

import hand_grown
import numpy as np

from meedge_ray.train.random_subnets import draw, draw_through


def test_at_every_place_all_links_have_the_same_chance() -> None:
    supernet = hand_grown.supernet()
    random = np.random.default_rng(0)
    drawn = Counter(draw(supernet, random) for _ in range(8000))
    assert supernet.space.original not in drawn
    # At place 1 there are four links, after three of them another three; the original itself is drawn again.
    assert abs(drawn[0, 4, 3] / 8000 - 3 / 11) < 0.03
    assert len(drawn) == 9
    assert all(abs(drawn[subnet] / 8000 - 1 / 11) < 0.03 for subnet in drawn if len(subnet) == 4)


def test_every_added_block_can_be_asked_for() -> None:
    supernet = hand_grown.supernet()
    random = np.random.default_rng(0)
    for growth in range(len(supernet.growths)):
        drawn = {draw_through(supernet, growth, random) for _ in range(60)}
        assert len(drawn) == (1 if growth == 0 else 3)
        for subnet in drawn:
            supernet.space.check(subnet)
            assert len(supernet.blocks) + growth in subnet
