"""Networks with cells through the scripts: trained, resumed, sampled, encoded, compared."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import TINY_RUN, final

import generate
import latents
import train
from ddn_networks import DDN, Network, snapshots
from training.report import layer_table, read_stats

RUN = [*TINY_RUN, '--grids=1,1,2,2x4', '--chain-dropout=0.1', '--tick=0.04', '--nosubdir']
CELLS = [1, 1, 1, 4, 8, 8]


def invoke(main, *args, expect=0) -> str:
    result = CliRunner().invoke(main, [str(a) for a in args], catch_exceptions=False)
    assert result.exit_code == expect, result.output
    return result.output


@pytest.fixture(scope='module')
def trained(tiny_zip, tmp_path_factory):
    folder = tmp_path_factory.mktemp('cells') / 'run'
    invoke(train.main, f'--data={tiny_zip}', f'--outdir={folder}', *RUN, '--duration=0.000160')
    return folder


def test_a_run_counts_splits_and_draws_cells(trained):
    net = Network.from_pretrained(trained)
    assert [spec.num_cells for spec in net.specs] == CELLS and net.num_codes == sum(CELLS)
    state, stats = final(trained), read_stats(str(trained))
    seen = 160 * 0.9 * torch.tensor(CELLS)  # less what chance chose
    assert torch.allclose(state['balance/counts'].sum(1) + 0, seen.double(), rtol=0.5)
    assert len(stats[-1]['loss_layers']) == 6 and 'grid' not in stats[-1]
    table = layer_table(net).splitlines()
    assert '2x4' in table[-2] and table[-1].split()[:5] == ['L', '=', '6', 'codes', str(sum(CELLS))]


def test_it_resumes_bit_for_bit(trained, tiny_zip, tmp_path):
    invoke(train.main, f'--data={tiny_zip}', f'--outdir={tmp_path}', *RUN, '--duration=0.000080')
    invoke(train.main, f'--resume={tmp_path}', '--duration=0.000160')
    a, b = final(trained), final(tmp_path)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_other_ways_of_balancing(tiny_zip, tmp_path):
    common = [f'--data={tiny_zip}', *RUN, '--duration=0.000048']
    invoke(train.main, *common, f'--outdir={tmp_path / "bias"}', '--balance=bias')
    assert final(tmp_path / 'bias')['balance/units'].any()
    out = invoke(train.main, *common, f'--outdir={tmp_path / "prefix"}', '--balance=conditional', expect=1)
    assert 'with cells use Split-and-Prune' in out and not (tmp_path / 'prefix').exists()


def test_seeds_codes_and_reconstructions(trained, tiny_zip, tmp_path):
    network = f'--network={trained}'
    invoke(generate.main, network, f'--outdir={tmp_path}', '--seeds=0-4', f'--save-codes={tmp_path / "c.npz"}')
    codes = np.load(tmp_path / 'c.npz')['codes']
    assert codes.shape == (5, sum(CELLS))
    invoke(generate.main, network, f'--outdir={tmp_path / "again"}', f'--codes={tmp_path / "c.npz"}')
    for i in range(5):
        assert (tmp_path / f'{i:06d}.png').read_bytes() == (tmp_path / 'again' / f'{i:06d}.png').read_bytes()
    np.savez(tmp_path / 'short.npz', codes=codes[:, :6])
    out = invoke(generate.main, network, f'--outdir={tmp_path}', f'--codes={tmp_path / "short.npz"}', expect=1)
    assert f'integers [B, {sum(CELLS)}], not [5, 6]' in out
    invoke(generate.main, network, f'--outdir={tmp_path / "r"}', f'--reconstruct={tiny_zip}', '--max-images=4')


def test_latents(trained, tiny_zip, tmp_path):
    file, sheet = tmp_path / 'codes.npz', tmp_path / 'sheet.png'
    net = [f'--network={trained}', '--device=cpu']
    invoke(latents.main, 'encode', *net, f'--data={tiny_zip}', f'--dest={file}')
    table = np.load(file)
    assert table['codes'].shape[1] == len(table['num_nodes']) == sum(CELLS)
    node = ','.join(map(str, table['codes'][0, :2]))
    invoke(latents.main, 'tree', *net, f'--codes={file}', f'--sheet={sheet}', f'--node={node}')
    deep = ','.join(map(str, table['codes'][0, :7]))
    out = invoke(latents.main, 'tree', *net, f'--codes={file}', f'--sheet={sheet}', f'--node={deep}', expect=1)
    assert 'the first 3 layers, which have no cells' in out
    swap = ['swap', *net, f'--codes={file}', f'--sheet={sheet}', '--coarse=0,1', '--fine=2,3']
    invoke(latents.main, *swap, '--layers=4')
    invoke(latents.main, 'walk', *net, f'--codes={file}', f'--sheet={sheet}', '--rows=0,1')
    invoke(latents.main, 'nearest', f'--codes={file}', f'--sheet={sheet}', '--rows=0')


@pytest.mark.parametrize('grids, says', [
    ('1,1,3,4', 'grid of 3x3 cells does not divide a layer of 4x4 pixels'),
    ('1,2', 'one for each of 4 scales or 6 layers, not 2'),
    ('1,0,1,1', '--grids=1,0,1,1: give numbers of cells a side'),
    ('1,2y2,1,1', '--grids=1,2y2,1,1: give numbers of cells a side'),
])  # fmt: skip
def test_grids_that_do_not_fit(tiny_zip, tmp_path, grids, says):
    common = [f'--data={tiny_zip}', f'--outdir={tmp_path / "x"}', *TINY_RUN]
    assert says in invoke(train.main, *common, f'--grids={grids}', expect=1)
    assert not list(tmp_path.glob('x/*'))


def test_a_recurrent_network_has_one_grid(tiny_zip, tmp_path):
    common = [f'--data={tiny_zip}', '--arch=recurrent', '--base-width=4', '--cres=1,2', '--blocks=1', '--steps=3']
    loop = json.loads(invoke(train.main, *common, '--nodes=5', '--grids=2x4', '-n'))
    assert loop['network_kwargs']['grid'] == [2, 4]
    net = snapshots.rebuild({'class_name': loop['network_class'], 'kwargs': loop['network_kwargs']})
    assert net.num_codes == 24
    assert 'have one grid' in invoke(train.main, *common, '--nodes=5', '--grids=1,2', '-n', expect=1)


@pytest.mark.parametrize('grids', [[[1, 1], [0, 2]], [[1, 2, 3]], ['2'], [[1, 1], [1, 99]], 7])
def test_a_snapshot_with_grids_that_do_not_fit(tmp_path, grids):
    net = DDN(8, 1, [8], [2], [4], grids=[1, (2, 4)]).eval()
    good, bad = tmp_path / 'good.safetensors', tmp_path / 'bad.safetensors'
    snapshots.save_network(good, net)
    assert torch.equal(Network.from_pretrained(good).sample(2)[1], net.sample(2)[1])
    net.init_kwargs['grids'] = grids
    with pytest.raises(ValueError, match='grid'):  # of a wrong type when it is written, of a wrong size when it is read
        snapshots.save_network(bad, net)
        Network.from_pretrained(bad)
