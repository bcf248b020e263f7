"""Snapshots are data: what goes in comes out, from any directory, and what is no snapshot says so in one line."""

import json
import os
import pickle
import struct
from pathlib import Path

import forks
import numpy as np
import pytest
import torch
from conftest import invoke
from mutations import outcome
from safetensors.torch import load_file, save_file

import generate
from ddn_networks import DDN, RecurrentDDN, snapshots, tensor_files
from torch_utils import persistence

CONFIG = {'img_resolution': (6, 4), 'img_channels': 3, 'channels': [8, 8], 'num_blocks': [1, 2], 'num_nodes': [4, 3]}


@pytest.fixture
def net() -> DDN:
    torch.manual_seed(0)
    return DDN(**CONFIG)


@pytest.fixture
def snapshot(net, tmp_path) -> Path:
    path = tmp_path / 'network-snapshot.safetensors'
    emas = {label: {n: t * s for n, t in net.state_dict().items()} for label, s in (('500', 0.5), ('50', 0.25))}
    snapshots.save_network(str(path), net, emas, {'preset': 'tiny', 'images_seen': 1234})
    return path


def test_what_goes_in_comes_out(net, snapshot):
    loaded = DDN.from_pretrained(str(snapshot), ema='none')
    assert not loaded.training
    assert loaded.init_kwargs == net.init_kwargs
    assert loaded.specs == net.specs
    for (name, a), (other, b) in zip(net.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert name == other and torch.equal(a, b)
    assert torch.equal(loaded.sample(3)[0], net.eval().sample(3)[0])
    assert loaded.snapshot_meta['images_seen'] == 1234 and loaded.snapshot_meta['preset'] == 'tiny'


@pytest.mark.parametrize('kind', ['1x1', 'larger', 'recurrent'])
def test_a_loaded_network_is_whole_and_does_not_need_its_file(kind, tmp_path):
    small = {'img_resolution': (6, 4), 'img_channels': 1, 'num_nodes': 3}
    if kind == 'recurrent':
        net = RecurrentDDN(**small, base_width=4, num_layers=2, features=8, prior_width=4, augment_dim=2)
    else:
        scales = 4 if kind == '1x1' else 2
        small['num_nodes'] = [3] * scales
        net = DDN(**small, channels=[4] * scales, num_blocks=[1] * scales)
    path = tmp_path / 'a.safetensors'
    snapshots.save_network(path, net)
    loaded = snapshots.load_network(path)
    with open(path, 'r+b') as file:
        file.write(bytes(path.stat().st_size))
    for ours, other in ((net.parameters(), loaded.parameters()), (net.buffers(), loaded.buffers())):
        for a, b in zip(ours, other, strict=True):
            assert torch.equal(a, b) and a.requires_grad == b.requires_grad and a.stride() == b.stride()


@pytest.mark.parametrize(('ema', 'factor'), [(None, 0.5), ('500', 0.5), (500, 0.5), ('50', 0.25), ('none', 1.0)])
def test_averaged_copies(net, snapshot, ema, factor):
    loaded = DDN.from_pretrained(str(snapshot), ema=ema)
    for a, b in zip(net.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(a * factor, b)


def test_without_copies_the_raw_weights_are_the_default(net, tmp_path):
    path = str(tmp_path / 'a.safetensors')
    snapshots.save_network(path, net)
    assert torch.equal(DDN.from_pretrained(path).ddls[0].weight, net.ddls[0].weight)
    with pytest.raises(ValueError, match="no averaged weights '500'; it has none"):
        DDN.from_pretrained(path, ema=500)


def test_a_wrong_label_lists_the_right_ones(snapshot):
    with pytest.raises(ValueError, match="no averaged weights '7'; it has 500, 50, none"):
        DDN.from_pretrained(str(snapshot), ema=7)


def test_from_another_directory_in_another_process(net, snapshot, tmp_path):
    code = 'import sys, ddn_networks; print(ddn_networks.DDN.from_pretrained(sys.argv[1]).sample(1)[1].tolist())'
    (tmp_path / 'script.py').write_text(code)
    out = forks.run(tmp_path / 'script.py', snapshot.name, cwd=snapshot.parent)
    assert out.returncode == 0, out.stderr
    assert json.loads(out.stdout) == net.sample(1)[1].tolist()


@pytest.mark.parametrize('keep', [0, 7, 100, 1000, -1])
def test_a_truncated_file(snapshot, keep):
    whole = snapshot.read_bytes()
    snapshot.write_bytes(whole[:keep])
    with pytest.raises(ValueError, match='network-snapshot.safetensors is not a whole safetensors file') as error:
        DDN.from_pretrained(str(snapshot))
    assert '\n' not in str(error.value)


class Bomb:
    """A pickle of this would touch the file ``path`` when loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize('dump', [pickle.dump, torch.save])
def test_a_pickle_under_another_name_is_not_run(tmp_path, dump):
    path, touched = tmp_path / 'network.safetensors', tmp_path / 'touched'
    with open(path, 'wb') as f:
        dump(Bomb(touched), f)
    with pytest.raises(ValueError, match='a pickle under another name'):
        DDN.from_pretrained(str(path))
    assert not touched.exists()


def test_a_disk_that_is_full_is_an_os_error_and_loses_nothing(net, snapshot, tmp_path_factory):
    before, script = snapshot.read_bytes(), tmp_path_factory.mktemp('script') / 'full.py'
    script.write_text(
        'import resource, sys; from ddn_networks import DDN, snapshots\n'
        'net = DDN.from_pretrained(sys.argv[1])\n'
        'resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n'
        'try: snapshots.save_network(sys.argv[1], net)\n'
        'except OSError as e: print(type(e).__name__)'
    )
    out = forks.run(script, snapshot)
    assert out.stdout == 'OSError\n', out.stderr
    assert snapshot.read_bytes() == before and os.listdir(snapshot.parent) == [snapshot.name]


def test_a_snapshot_has_the_permissions_of_any_new_file(snapshot):
    other = snapshot.with_name('other')
    other.touch()
    assert snapshot.stat().st_mode == other.stat().st_mode


def test_a_missing_file(tmp_path):
    with pytest.raises(OSError, match=r'nowhere\.safetensors'):
        DDN.from_pretrained(str(tmp_path / 'nowhere.safetensors'))


def test_a_bare_name_is_a_network_that_comes_with_the_code(net, tmp_path, monkeypatch):
    monkeypatch.setattr(snapshots, 'PRETRAINED', tmp_path / 'pretrained')
    (tmp_path / 'pretrained' / 'here').mkdir(parents=True)
    monkeypatch.chdir(tmp_path / 'pretrained')
    with pytest.raises(OSError, match='no such file: mnist; networks that come with the package: none'):
        DDN.from_pretrained('mnist')
    snapshots.save_network('mnist.safetensors', net)
    monkeypatch.chdir('here')
    assert torch.equal(DDN.from_pretrained('mnist').ddls[0].weight, net.ddls[0].weight)
    with pytest.raises(OSError, match='no such file: faces; networks that come with the package: mnist$'):
        DDN.from_pretrained('faces')
    snapshots.save_network('mnist', DDN(**{**CONFIG, 'num_nodes': [2, 2]}))  # a file here comes first
    assert DDN.from_pretrained('mnist').num_nodes == [2, 2, 2]


def test_safetensors_of_somebody_else(tmp_path):
    path = str(tmp_path / 'other.safetensors')
    save_file({'w': torch.zeros(2)}, path)
    with pytest.raises(ValueError, match='without the header of a DDN snapshot'):
        DDN.from_pretrained(path)
    for header in ('not json {', '3', '["a", "list"]'):
        save_file({'w': torch.zeros(2)}, path, metadata={'ddn': header})
        with pytest.raises(ValueError, match='without the header of a DDN snapshot'):
            DDN.from_pretrained(path)


def test_a_training_state_is_no_network(tmp_path):
    path = str(tmp_path / 'training-state.safetensors')
    tensor_files.save_tensors(path, {'optimizer/0': torch.zeros(2)}, {'images_seen': 3})
    with pytest.raises(ValueError, match='not a network snapshot'):
        DDN.from_pretrained(path)


@pytest.mark.parametrize('name', ['subprocess.Popen', 'torch.nn.Linear', 'ddn_networks.network.os', None, ['DDN']])
def test_a_class_that_is_not_on_the_list_is_not_made(tmp_path, name):
    path = str(tmp_path / 'evil.safetensors')
    tensor_files.save_tensors(path, {}, {'class_name': name, 'kwargs': {'args': ['touch', 'x']}, 'emas': []})
    with pytest.raises(ValueError, match='not a class that a snapshot may name'):
        DDN.from_pretrained(path)


def test_weights_that_do_not_fit_the_description(net, tmp_path):
    path = str(tmp_path / 'a.safetensors')
    tensors = {f'net/{n}': t for n, t in net.state_dict().items()}
    spec = snapshots.init_spec(net) | {'emas': []}
    missing = dict(list(tensors.items())[1:])
    tensor_files.save_tensors(path, missing, spec)
    with pytest.raises(ValueError, match=r'do not fit the network.*net/start is missing'):
        DDN.from_pretrained(path)
    misshapen = tensors | {'net/ddls.1.weight': torch.zeros(4, 3, 4)}
    tensor_files.save_tensors(path, misshapen, spec)
    with pytest.raises(ValueError, match=r'ddls\.1\.weight.*\[4, 3, 4\]'):
        DDN.from_pretrained(path)


@pytest.mark.parametrize('kwargs', [{}, {'img_resolution': 4, 'surprise': 1}, {'img_resolution': 'wide'}, []])
def test_constructor_arguments_of_nobody(net, tmp_path, kwargs):
    path = str(tmp_path / 'a.safetensors')
    tensor_files.save_tensors(path, {}, snapshots.init_spec(net) | {'kwargs': kwargs, 'emas': []})
    with pytest.raises(ValueError, match=r'a\.safetensors does not describe a network'):
        DDN.from_pretrained(path)


def test_tensors_of_any_kind_round_trip(tmp_path):
    path = str(tmp_path / 'state.safetensors')
    tensors = {
        'strided': torch.arange(12.0).view(3, 4).t(),
        'double': torch.tensor(0.1, dtype=torch.float64),
        'whole': torch.tensor([1, -1]),
        'half': torch.ones(3, dtype=torch.bfloat16),
        'bool': torch.tensor([True, False]),
        'empty': torch.zeros(0, 3),
        'leaf': torch.nn.Parameter(torch.ones(2)),
    }
    tensor_files.save_tensors(path, tensors, {'a': [1, {'b': None}], 'text': 'ä\n'})
    loaded, meta = tensor_files.load_tensors(path)
    assert meta == {'a': [1, {'b': None}], 'text': 'ä\n'}
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor.detach())


def test_two_names_for_one_tensor(tmp_path):
    """Recurrent networks share weights; safetensors refuses shared memory unless told otherwise."""
    path, w = str(tmp_path / 'a.safetensors'), torch.arange(6.0)
    tensor_files.save_tensors(path, {'a': w, 'b': w, 'c': w[2:]}, {})
    loaded, _ = tensor_files.load_tensors(path)
    assert torch.equal(loaded['a'], w) and torch.equal(loaded['b'], w) and torch.equal(loaded['c'], w[2:])


def test_arguments_are_remembered_as_plain_values(net):
    assert net.init_kwargs['img_resolution'] == [6, 4]
    assert net.init_kwargs['leak_choice'] is True  # defaults too: they may change one day
    numpy = DDN(np.array([4, 4]), np.int64(1), np.array([8]), num_blocks=[np.int32(1)], num_nodes=[np.int64(2)])
    assert json.loads(json.dumps(numpy.init_kwargs))['channels'] == [8]
    spec = snapshots.init_spec(net)
    assert spec['class_name'] in snapshots.ALLOWED_CLASSES
    assert json.loads(json.dumps(spec)) == spec
    assert snapshots.rebuild(spec).specs == net.specs


def test_a_folder_is_its_newest_snapshot(net, tmp_path):
    for nimg in (5, 40, 300):
        snapshots.save_network(tmp_path / f'network-snapshot-{nimg:09d}.safetensors', net, meta={'cur_nimg': nimg})
    (tmp_path / 'network-snapshot-000000900.safetensors.old').write_bytes(b'')
    (tmp_path / 'network-snapshot-best.safetensors').write_bytes(b'')
    snapshots.save_network(tmp_path / 'network-snapshot-1234567890.safetensors', net, meta={'cur_nimg': 1234567890})
    assert DDN.from_pretrained(tmp_path).snapshot_meta['cur_nimg'] == 1234567890
    out = invoke(generate.main, f'--network={tmp_path}', '--device=cpu', '--seeds=0', f'--outdir={tmp_path}/out')
    assert 'Error' not in out and (tmp_path / 'out' / '000000.png').is_file()


def test_a_folder_without_a_snapshot(tmp_path):
    (tmp_path / 'training-state-000000001.safetensors').write_bytes(b'')
    with pytest.raises(OSError, match=r'has no network-snapshot-\*\.safetensors: give a snapshot or a run folder'):
        DDN.from_pretrained(tmp_path)
    out = invoke(generate.main, f'--network={tmp_path}', '--device=cpu', '--seeds=0', '--outdir=out', expect=1)
    assert 'has no network-snapshot-*.safetensors' in out.splitlines()[-1]


def test_what_is_not_a_file(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / 'pipe')  # reading it would wait for ever
    (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
    for path in (tmp_path / 'pipe', Path('/dev/zero')):
        with pytest.raises(OSError, match=f'{path} is not a file'):
            DDN.from_pretrained(path)
    monkeypatch.chdir(tmp_path)
    for path in ('loop', 'loop/', 'nul\0.safetensors', 'x' * 5000, 'https://example.com/net.safetensors', ''):
        error = outcome(lambda path=path: DDN.from_pretrained(path))
        assert isinstance(error, (OSError, ValueError)), path


def test_names_that_are_not_utf_8(net, tmp_path):
    path = tmp_path / os.fsdecode(b'net-\xff.safetensors')
    snapshots.save_network(path, net)
    assert torch.equal(DDN.from_pretrained(path).ddls[0].weight, net.ddls[0].weight)
    path.write_bytes(b'damaged')
    assert isinstance(outcome(lambda: DDN.from_pretrained(path)), ValueError)


def test_nothing_is_left_of_a_write_that_fails(net, tmp_path):
    (tmp_path / 'folder.safetensors').mkdir()
    with pytest.raises(OSError, match=r'cannot write .*folder\.safetensors: .*; nothing of it is left behind'):
        snapshots.save_network(tmp_path / 'folder.safetensors', net)
    (tmp_path / 'file').write_bytes(b'')
    with pytest.raises(OSError, match='cannot write'):
        snapshots.save_network(tmp_path / 'file' / 'net.safetensors', net)
    with pytest.raises(ValueError, match='JSON'):
        snapshots.save_network(tmp_path / 'nan.safetensors', net, meta={'loss': float('nan')})
    assert sorted(os.listdir(tmp_path)) == ['file', 'folder.safetensors']


def test_others_read_what_we_write(net, snapshot):
    tensors = load_file(snapshot)
    assert all(torch.equal(tensors[f'net/{name}'], t) for name, t in net.state_dict().items())
    data = snapshot.read_bytes()
    assert struct.unpack('<Q', data[:8])[0] % 8 == 0  # tensors are aligned


def test_a_network_that_could_not_be_loaded_is_not_saved(tmp_path):
    net = DDN(2**13, 1, [2] * 14, [1] * 14, [2] * 14)
    with pytest.raises(ValueError, match='img_resolution=8192 is out of range: 0 to 4096'):
        snapshots.save_network(tmp_path / 'net.safetensors', net)
    assert not list(tmp_path.iterdir())


def test_a_url_is_downloaded(net, snapshot, monkeypatch):
    monkeypatch.setattr(persistence, 'local_path', lambda url: {'https://example.com/net.safetensors': snapshot}[url])
    loaded = persistence.load_network('https://example.com/net.safetensors', ema='none')
    assert torch.equal(loaded.ddls[0].weight, net.ddls[0].weight)
    assert persistence.network_path('mnist') == snapshots.network_path('mnist')
    with pytest.raises(OSError, match='https://example.com/net.safetensors is a URL: download it, and give the file'):
        DDN.from_pretrained('https://example.com/net.safetensors')
