"""What a notebook shows of an observation."""

import re

import torch

from regard.attention.maps.map import AttentionMap
from regard.figures.thumbnails import sites_table


def test_a_line_for_each_site_and_a_picture_for_each_head():
    maps = {
        "a<b>": [AttentionMap.from_weights(torch.rand(1, 3, 60, 70))] * 2,
        "alone": [AttentionMap.from_weights(torch.rand(4, 5))],
        "empty": [AttentionMap.from_weights(torch.rand(2, 0, 5))],
    }
    page = sites_table(maps, "Model")
    lines = re.findall("<tr>(.*?)</tr>", page)[1:]
    assert [line.count("<img") for line in lines] == [3, 1, 0]
    assert "a&lt;b&gt;" in lines[0]
    assert "1 × 3 × 60 × 70" in lines[0]
    assert ">2<" in lines[0]


def test_an_observation_of_nothing():
    assert "0 sites" in sites_table({}, "Model: 0 sites")
