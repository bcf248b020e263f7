"""Networks as folders and on the Hugging Face Hub: the real client talks to a server on this machine."""

import base64
import hashlib
import json
import struct
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import forks
import numpy as np
import pytest
import torch
from conftest import invoke
from PIL import Image

import ddn_networks
import generate
from ddn_networks import DDN, Network, hub, pictures, samplers, show

REPO = 'somebody/tiny'
COMMIT = 'c' * 40


@pytest.fixture(scope='module')
def net() -> Network:
    torch.manual_seed(0)
    net = DDN(16, 3, [16, 8], [1, 2], [4, 3], prior_width=8).eval()
    net.sampling = net.sampling._replace(temperatures=(1.0, 0.5, 0.5))
    return net


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks a server for when it makes a repository, commits to it and downloads from it."""

    protocol_version = 'HTTP/1.1'

    def reply(self, status: int, body: bytes = b'', **headers: str) -> None:
        self.send_response(status)
        for name, value in {'content-length': str(len(body)), **headers}.items():
            self.send_header(name.replace('_', '-'), value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)

    def json(self, value, status: int = 200, **headers: str) -> None:
        self.reply(status, json.dumps(value).encode(), content_type='application/json', **headers)

    def body(self) -> bytes:
        if self.headers.get('Transfer-Encoding') == 'chunked':
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b''.join(parts)
        return self.rfile.read(int(self.headers.get('Content-Length', 0)))

    def do_POST(self) -> None:
        body, path, files, objects = self.body(), self.path.split('?')[0], self.server.files, self.server.objects
        self.server.asked.append(path)
        if self.headers.get('Authorization') != 'Bearer hf_secret':
            self.json({'error': 'Invalid username or password.'}, 401)
        elif path == '/api/repos/create':
            self.json({'url': f'{self.server.url}/{REPO}', 'name': json.loads(body)['name']})
        elif path == '/api/validate-yaml':
            self.server.cards.append(json.loads(body)['content'])
            self.json({'errors': [], 'warnings': []})
        elif path.startswith(f'/api/models/{REPO}/preupload/'):
            modes = [{'path': f['path'], 'shouldIgnore': False, 'oid': None,
                      'uploadMode': 'lfs' if f['path'].endswith('.safetensors') else 'regular'}
                     for f in json.loads(body)['files']]  # fmt: skip
            self.json({'files': modes})
        elif path == f'/{REPO}.git/info/lfs/objects/batch':
            hrefs = [(o, f'{self.server.url}/put/{o["oid"]}') for o in json.loads(body)['objects']]
            self.json({'transfer': 'basic', 'objects': [{**o, 'actions': {'upload': {'href': h}}} for o, h in hrefs]})
        elif path == f'/api/models/{REPO}/commit/main':
            for line in map(json.loads, body.splitlines()):
                value = line['value']
                if line['key'] == 'file':
                    files[value['path']] = base64.b64decode(value['content'])
                elif line['key'] == 'lfsFile':
                    files[value['path']] = objects[value['oid']]
            self.json({'success': True, 'commitOid': COMMIT, 'commitUrl': f'{self.server.url}/{REPO}/commit/{COMMIT}'})
        else:
            self.json({'error': f'unknown {path}'}, 404)

    def do_PUT(self) -> None:
        data = self.body()
        self.server.objects[hashlib.sha256(data).hexdigest()] = data
        assert self.path == f'/put/{hashlib.sha256(data).hexdigest()}'
        self.reply(200)

    def do_GET(self) -> None:
        path = self.path.split('?')[0]
        self.server.asked.append(path)
        name = path.removeprefix(f'/{REPO}/resolve/main/')
        if name not in self.server.files:
            code = 'EntryNotFound' if path.startswith(f'/{REPO}/') else 'RepoNotFound'
            self.reply(404, x_error_code=code, x_error_message='it is not there')
            return
        data = self.server.files[name]
        self.reply(200, data, etag=f'"{hashlib.sha256(data).hexdigest()}"', x_repo_commit=COMMIT,
                   accept_ranges='bytes')  # fmt: skip

    do_HEAD = do_GET

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    server.files, server.objects, server.asked, server.cards = {}, {}, [], []
    server.url = f'http://127.0.0.1:{server.server_port}'
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def client(script: str, server, tmp_path, **env) -> forks.Done:
    """Run Python with the real huggingface_hub, which reads the endpoint when it is imported."""
    (tmp_path / 'script.py').write_text(script)
    settings = {
        'HF_ENDPOINT': server.url, 'HF_HOME': str(tmp_path / 'cache'), 'HF_TOKEN': 'hf_secret', 'NO_PROXY': '*',
        'HF_HUB_DISABLE_XET': '1', 'HF_HUB_DISABLE_TELEMETRY': '1', 'HF_HUB_DISABLE_PROGRESS_BARS': '1', **env,
    }  # fmt: skip
    return forks.run(tmp_path / 'script.py', env=settings)


def test_a_network_goes_to_the_hub_and_comes_back(net, server, tmp_path):
    pytest.importorskip('huggingface_hub')
    net.save_pretrained(tmp_path / 'tiny')
    done = client(f"""
import torch
from ddn_networks import Network
net = Network.from_pretrained({str(tmp_path / 'tiny')!r})
print(net.push_to_hub({REPO!r}, trained_on='noise', figures={{'FID-50k': 300.5}}, license='cc0-1.0', private=True))
again = Network.from_pretrained('hf:{REPO}')
assert torch.equal(again.sample(2)[1], net.sample(2)[1]) and again.sampling == net.sampling
for wrong in ('hf:{REPO}@none', 'hf:somebody/else'):
    try:
        Network.from_pretrained(wrong)
    except OSError as error:
        print(error)
""", server, tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    address, *errors = done.stdout.splitlines()
    assert address == f'{server.url}/{REPO}/commit/{COMMIT}' and len(errors) == 2
    assert errors[0].startswith('hf:somebody/tiny@none: ') and errors[1].startswith('hf:somebody/else: ')
    assert set(server.files) == {'model.safetensors', 'config.json', 'README.md', 'samples.png'}
    assert f'/{REPO}.git/info/lfs/objects/batch' in server.asked and '/api/repos/create' in server.asked
    card = server.files['README.md'].decode()
    assert set(server.cards) == {card} and "from_pretrained('hf:somebody/tiny')" in card
    assert '| FID-50k | 300.5 |' in card and '| trained on | noise |' in card and 'license: "cc0-1.0"' in card
    (tmp_path / 'model.safetensors').write_bytes(server.files['model.safetensors'])
    assert torch.equal(Network.from_pretrained(tmp_path / 'model.safetensors').sample(2)[1], net.sample(2)[1])


def test_the_hub_says_no_in_one_line(net, server, tmp_path):
    pytest.importorskip('huggingface_hub')
    net.save_pretrained(tmp_path / 'tiny')
    done = client(f"""
from ddn_networks import Network
net = Network.from_pretrained({str(tmp_path / 'tiny')!r})
for repo in ({REPO!r}, 'tiny', 'a/b/c', '../x'):
    try:
        net.push_to_hub(repo)
    except (OSError, ValueError) as error:
        print(type(error).__name__, error)
""", server, tmp_path, HF_TOKEN='hf_wrong')  # fmt: skip
    first, *others = done.stdout.splitlines()
    assert first.startswith(f'OSError {REPO}: the Hub cannot be used: ') and '401' in first
    assert [line.split(' is ')[0] for line in others] == ['ValueError tiny', 'ValueError a/b/c', 'ValueError ../x']
    assert not server.files


def test_scripts_take_networks_of_the_hub(net, server, tmp_path):
    pytest.importorskip('huggingface_hub')
    net.save_pretrained(tmp_path / 'tiny')
    server.files['model.safetensors'] = (tmp_path / 'tiny' / 'model.safetensors').read_bytes()
    env = {'HF_ENDPOINT': server.url, 'HF_HOME': str(tmp_path / 'cache'), 'HF_HUB_DISABLE_XET': '1', 'NO_PROXY': '*'}
    args = ['generate.py', f'--network=hf:{REPO}', f'--outdir={tmp_path}/out', '--seeds=0', '--device=cpu']
    done = forks.run(*args, env=env)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'out' / '000000.png').is_file()
    done = forks.run(*args, env={**env, 'HF_HUB_OFFLINE': '1', 'HF_ENDPOINT': 'http://127.0.0.1:1'})  # from the cache
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('name', ['hf:', 'hf:tiny', 'hf:a/b/c', 'hf:a/../b', 'hf:a/b@', 'hf:a/b@c d', 'hf:/etc/passwd'])
def test_names_that_are_not_of_the_hub(name, tmp_path):
    with pytest.raises(ValueError, match='give hf:owner/name'):
        Network.from_pretrained(name)
    out = invoke(generate.main, f'--network={name}', f'--outdir={tmp_path}', '--seeds=0', expect=1)
    assert out.startswith('Error: ') and out.count('\n') == 1


def test_without_the_client_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'huggingface_hub', None)
    with pytest.raises(OSError, match=r"hf:a/b needs the package huggingface_hub: pip install 'ddn-networks\[hub\]'"):
        hub.download('hf:a/b')


def test_a_folder_is_a_network_and_describes_it(net, tmp_path):
    folder = tmp_path / 'new' / 'tiny'
    net.save_pretrained(folder, trained_on='a | b\nc', figures={'x|y': 1})
    again = Network.from_pretrained(folder)
    assert torch.equal(again.sample(3)[0], net.sample(3)[0]) and again.sampling == net.sampling
    assert json.loads((folder / 'config.json').read_text())['kwargs'] == net.init_kwargs
    card = (folder / 'README.md').read_text()
    assert '| trained on | a \\| b c |' in card and '| x\\|y | 1 |' in card and '![32 samples](samples.png)' in card
    with Image.open(folder / 'samples.png') as sheet:
        assert np.array_equal(np.asarray(sheet), show(net.sample(32)).pixels.numpy())
    generator = DDN(4, 1, [8], [1], [3], conditions=['class:3']).eval()
    generator.save_pretrained(tmp_path / 'classes')
    assert not (tmp_path / 'classes' / 'samples.png').exists()
    assert 'samples.png' not in (tmp_path / 'classes' / 'README.md').read_text()
    mnist = Network.from_pretrained('mnist')
    mnist.save_pretrained(tmp_path / 'mnist')
    assert '| trained on | mnist-train |' in (tmp_path / 'mnist' / 'README.md').read_text()
    assert Network.from_pretrained(tmp_path / 'mnist').snapshot_meta['dataset'] == 'mnist-train'


# Pictures.


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_png_is_what_pillow_reads(channels, tmp_path):
    pixels = torch.randint(0, 256, (5, 7, channels), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pictures.Picture(pixels).save(tmp_path / 'x.png')
    with Image.open(tmp_path / 'x.png') as image:
        assert image.mode == {1: 'L', 3: 'RGB', 4: 'RGBA'}[channels]
        assert np.array_equal(np.asarray(image).reshape(pixels.shape), pixels.numpy())
    data = pictures.png(pixels)
    (length,) = struct.unpack('>I', data[8:12])
    assert struct.unpack('>I', data[16 + length : 20 + length])[0] == zlib.crc32(data[12 : 16 + length])


def test_show_takes_what_networks_return(net):
    images, codes = net.sample(5)
    expected = show(images).pixels
    assert expected.shape == (4 * 18, 4 * (5 * 17 + 1), 3)  # 16 pixels wide, a line between, four times enlarged
    uint8 = ((images + 1) * 127.5).round().clamp(0, 255).byte()
    assert torch.equal(expected[::4, ::4][1:17, 1:17], uint8[0].permute(1, 2, 0))
    for x in ((images, codes), codes, codes.int(), net.reconstruct(images)._replace(images=images)):
        assert torch.equal(show(x, net).pixels, expected)
    assert show(images, columns=2).pixels.shape == (4 * (3 * 17 + 1), 4 * (2 * 17 + 1), 3)
    assert torch.equal(show(images[0]).pixels, show(images[:1]).pixels)
    assert torch.equal(show(uint8).pixels, expected) and show(uint8)._repr_png_().startswith(b'\x89PNG')
    kept = net(samplers.nearest(images), 5, keep=True)
    assert show(kept).pixels.shape == (4 * (5 * 17 + 1), 4 * (net.num_layers * 17 + 1), 3)
    assert ddn_networks.show is show


def test_show_refuses_what_it_cannot_show(net):
    for x, said in ((torch.zeros(2, 3, dtype=torch.int64), 'give it'), (torch.zeros(3), r'not \[3\]'),
                    (torch.zeros(1, 2, 4, 4), 'C 1, 3 or 4'), (torch.zeros(0, 3, 4, 4), 'C 1, 3 or 4'),
                    (torch.zeros(1025, 1, 2, 2), '1025 images'), (torch.zeros(1, 1, 2, 2).int(), 'int32')):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            show(x)
    with pytest.raises(ValueError, match='codes of this network'):
        show(torch.zeros(2, 9, dtype=torch.int64), net)
    assert show(torch.full((1, 1, 2, 2), float('nan'))).pixels.float().mean() > 0
