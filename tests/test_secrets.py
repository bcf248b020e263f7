"""Passwords and tokens of URLs: used, but neither printed nor stored by any script."""

import functools
import http.server
import json
import shutil
import threading

import click
import numpy as np
import pytest
import torch
from conftest import TINY_RUN, invoke

import dataset_tool
import fid
import generate
import latents
import train
from metrics.lenet import LeNet

SECRETS = ('password', 'signature')


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A function: the name of a file in tmp_path/'web' -> its URL, with a password and a token."""
    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path / 'cache'))
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    (tmp_path / 'web').mkdir()
    handler = functools.partial(Quiet, directory=tmp_path / 'web')
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
        thread.start()
        yield lambda name: f'http://me:password@127.0.0.1:{server.server_address[1]}/{name}?X-Amz-Signature=signature'
        server.shutdown()
        thread.join()


def run(command: click.Command, *args, expect: int = 0) -> str:
    out = invoke(command, *args, expect=expect)
    assert not [s for s in SECRETS if s in out], out
    return out


def test_no_secret_is_printed_or_stored(web, tiny_zip, tmp_path):
    shutil.copy(tiny_zip, tmp_path / 'web')
    data, out = web('tiny.zip'), tmp_path / 'out'
    options = [f'--data={data}', f'--val-data={data}', f'--val-pairs={data}', f'--condition=image:{data}', *TINY_RUN]
    run(train.main, '-n', *options, f'--outdir={out}')
    run(train.main, *options, f'--outdir={out}', '--nosubdir', '--duration=0.000032')
    run(train.main, f'--resume={out}', '--duration=0.000064')
    snapshot = tmp_path / 'web' / 'net.safetensors'
    plain = [f'--data={data}', *TINY_RUN, '--duration=0.000032']
    run(train.main, *plain, f'--outdir={out}/plain', '--nosubdir')
    snapshot.write_bytes((out / 'plain' / 'network-snapshot-000000032.safetensors').read_bytes())
    net = f'--network={web("net.safetensors")}'
    run(train.main, *plain, f'--transfer={net.removeprefix("--network=")}', f'--outdir={out}/moved', '--nosubdir')
    run(generate.main, net, '--seeds=0-3', f'--outdir={out}/made', '--device=cpu')
    run(latents.main, 'encode', net, f'--data={data}', f'--dest={out}/codes.npz', '--device=cpu')
    stored = str(np.load(out / 'codes.npz')['data'])
    assert stored.startswith(str(tmp_path / 'cache')) and stored.endswith('-tiny.zip')
    run(latents.main, 'nearest', f'--codes={out}/codes.npz', '--rows=0', f'--sheet={out}/nearest.png')
    torch.save(LeNet().state_dict(), tmp_path / 'lenet.pt')
    detector = [f'--detector={tmp_path}/lenet.pt', '--device=cpu']
    run(fid.main, 'ref', f'--data={data}', f'--dest={out}/ref.npz', f'--json={out}/ref.json', *detector)
    run(fid.main, 'calc', net, f'--ref={out}/ref.npz', '--num=8', f'--json={out}/calc.json', *detector)
    assert '/net.safetensors?X-Amz-Signature=***' in json.loads((out / 'calc.json').read_text())['images']['network']
    run(dataset_tool.main, f'--source={data}', f'--dest={out}/copy.zip')
    for path in out.rglob('*'):
        assert path.is_dir() or not [s for s in SECRETS if s.encode() in path.read_bytes()], path


@pytest.mark.parametrize(
    'command, args',
    [
        (train.main, ['--batch=URL']),
        (train.main, ['URL']),
        (generate.main, ['--network=x', '--outdir=x', 'URL']),
        (fid.main, ['calc', '--ref=x', '--batch=URL']),
        (latents.main, ['nearest', '--codes=x', '--rows=URL']),
        (dataset_tool.main, ['--source=x', '--dest=x', 'URL']),
    ],
)
def test_usage_errors_show_no_secret(command, args):
    args = [arg.replace('URL', 'https://u:password@host/x?signature') for arg in args]
    assert 'https://***@host/x?***' in run(command, *args, expect=2)


@pytest.mark.parametrize(
    'command, args',
    [
        (train.main, ['--data=URL', '--outdir=OUT']),
        (generate.main, ['--network=URL', '--seeds=0', '--outdir=OUT']),
        (latents.main, ['encode', '--network=URL', '--data=URL', '--dest=OUT.npz']),
        (dataset_tool.main, ['--source=URL', '--dest=OUT.zip']),
    ],
)
def test_errors_name_the_cached_download(web, tmp_path, command, args):
    (tmp_path / 'web' / 'bad').write_bytes(b'neither image nor network')
    args = [a.replace('URL', web('bad')).replace('OUT', str(tmp_path / 'out')) for a in args]
    out = run(command, *args, expect=1)
    (file,) = (tmp_path / 'cache').iterdir()
    assert f'(from the download cache: delete {file} to download it again)' in out
