"""experiments/cells.py: rows are networks that exist, of the same blocks and widths."""

import pytest
import torch

from cli.training_options import parsed
from ddn_networks import DDN
from experiments import cells

SHAPES = {'digits': (32, 1), 'cifar10': (32, 3), 'faces64': (64, 3)}


@pytest.mark.parametrize('name', cells.SETTINGS)
def test_rows_differ_in_grids_and_heads_alone(name):
    found = {}
    for row in cells.rows(cells.SETTINGS[name]):
        o = parsed({**cells.COMMON, **row.options}).params
        numbers = [[int(n) for n in (o[key] or '').split(',') if n] for key in ('channels', 'blocks', 'grids')]
        channels, blocks, grids = numbers
        with torch.device('meta'):
            net = DDN(*SHAPES[name], channels, blocks, [64] * len(channels), grids=grids, prior_width=o['prior_width'])
        found[row.name] = net
    whole = found[cells.WHOLE]
    assert whole.num_codes == whole.num_layers and len(found) == 3 + len(cells.LEADS)
    shape = [(spec.size, spec.channels, spec.num_nodes) for spec in whole.specs]
    for title, net in found.items():
        assert [(spec.size, spec.channels, spec.num_nodes) for spec in net.specs] == shape
        assert title == cells.WHOLE or net.num_codes > 2 * net.num_layers
