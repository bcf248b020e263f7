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
        nodes = [int(o['nodes'])] * len(channels)
        with torch.device('meta'):
            net = DDN(*SHAPES[name], channels, blocks, nodes, grids=grids, prior_width=o['prior_width'])
        found[row.name] = net
    small = found.pop('small steps')
    assert small.num_layers == 21 and small.num_nodes == [8] * 21
    whole = found[cells.WHOLE]
    assert whole.num_codes == whole.num_layers and len(found) == 4 + len(cells.LEADS)
    shape = [(spec.size, spec.channels, spec.num_nodes) for spec in whole.specs]
    for title, net in found.items():
        assert [(spec.size, spec.channels, spec.num_nodes) for spec in net.specs] == shape
        assert title == cells.WHOLE or net.num_codes > 2 * net.num_layers
